"""Answers of many jobs in the processes of one launch.

Run as `python -m support.processes_of_model FILE`.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

from torch import distributed

from needlework.evaluation.answer_store import AnswerStore
from needlework.evaluation.cell import Cell
from needlework.evaluation.generation.answers import _Answerer, _merge
from needlework.evaluation.generation.job import EvaluationJob

if __name__ == "__main__":
    path = Path(sys.argv[1])
    for number, case in enumerate(json.loads(path.read_text())["cases"]):
        job = EvaluationJob.model_validate(case["job"])
        merge = partial(_merge, opening=job.model.opening)
        predictions = _Answerer(job, AnswerStore(merge=merge), 1).answer(Cell(case["samples"]))
        if os.environ["RANK"] == "0":
            predictions.write_parquet(path.with_name(f"{number}.parquet"))
    distributed.destroy_process_group()
