"""Answers of many jobs in the processes of one launch.

Run as `python -m support.processes_of_model FILE`.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

from torch import distributed

from needlework.evaluation.generation.answer_checkpoint import AnswerCheckpoint
from needlework.evaluation.generation.answers import EvaluationJob, _answer_samples, _merge

if __name__ == "__main__":
    path = Path(sys.argv[1])
    for number, case in enumerate(json.loads(path.read_text())["cases"]):
        job = EvaluationJob.model_validate(case["job"])
        merge = partial(_merge, opening=job.model.opening)
        checkpoint = AnswerCheckpoint(merge=merge)
        tables = _answer_samples(job, case["samples"], slice(None), 1, False, checkpoint)
        if os.environ["RANK"] == "0":
            tables[0].write_parquet(path.with_name(f"{number}.parquet"))
    distributed.destroy_process_group()
