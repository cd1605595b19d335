"""Generate samples with lm-evaluation-harness, unmodified. Arguments: task, tokens, samples."""

import sys
from pathlib import Path

from lm_eval.tasks.ruler import common_utils

task, length, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tokenizer = common_utils.get_tokenizer("tokenizer")
if task.startswith("niah"):
    from lm_eval.tasks.ruler import niah_utils, prepare_niah

    kinds = {
        "niah_single_1": ("repeat", "words", "numbers"),
        "niah_single_2": ("essay", "words", "numbers"),
        "niah_multikey_3": ("needle", "uuids", "uuids"),
    }
    haystack, keys, values = kinds[task]
    rows = prepare_niah.generate_samples(
        prepare_niah.get_haystack(type_haystack=haystack),
        max_seq_length=length,
        template=niah_utils.TEMPLATE,
        type_haystack=haystack,
        type_needle_k=keys,
        type_needle_v=values,
        num_samples=count,
        TOKENIZER=tokenizer,
    )
elif task == "vt":
    from lm_eval.tasks.ruler import vt_utils

    example = vt_utils.sys_vartrack_w_noise_random(
        tokenizer=tokenizer, num_samples=1, max_seq_length=500, incremental=5
    )[0]
    rows = vt_utils.sys_vartrack_w_noise_random(
        tokenizer=tokenizer, num_samples=count, max_seq_length=length, icl_example=example
    )
elif task == "cwe":
    from lm_eval.tasks.ruler import cwe_utils

    rows = cwe_utils.sys_word_pair_random(
        num_samples=count, max_seq_length=length, tokenizer=tokenizer
    )
else:
    from lm_eval.tasks.ruler import fwe_utils

    rows = fwe_utils.sys_kwext(tokenizer=tokenizer, max_seq_length=length, num_samples=count)
fill_ratio = sum(row["length"] for row in rows) / len(rows) / length
Path(f"lm-eval-{task}-{length}.txt").write_text(str(fill_ratio))
