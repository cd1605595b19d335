"""Many cases answered in the processes of one launch: `python -m processes_of_model FILE`."""

import json
import os
import sys
from functools import partial
from pathlib import Path

from torch import distributed

from needlework.config.opening import Opening
from needlework.evaluation.generation.answer_checkpoint import AnswerCheckpoint
from needlework.evaluation.generation.answers import EvaluationJob, _answers, _together

if __name__ == "__main__":
    path = Path(sys.argv[1])
    for number, case in enumerate(json.loads(path.read_text())["cases"]):
        together = partial(_together, opening=Opening(**case["asked"]["opening"]))
        finished = AnswerCheckpoint(together=together)
        tables = _answers(
            EvaluationJob(**case["asked"]), case["samples"], slice(None), 1, False, finished
        )
        if os.environ["RANK"] == "0":
            tables[0].write_parquet(path.with_name(f"{number}.parquet"))
    distributed.destroy_process_group()
