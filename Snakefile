# needlework: one experiment, from data to report. Its file is config.yaml or --configfile.
import sys

from snakemake.utils import min_version

from needlework.pipeline.code_version import code_version
from needlework.config.parsing.load import load_experiment
from needlework.pipeline.output_dir import require_writable

min_version("9.27")

# A --configfile replaces config.yaml. Snakemake would merge the two, in cluster jobs even with
# replace-workflow-config, which it does not pass on to them.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


try:
    experiment = load_experiment(
        config, workflow.overwrite_configfiles or workflow.configfiles
    )
    RESULTS = f"results/{experiment.experiment}"
    require_writable(RESULTS)
except ValueError as error:
    sys.exit("\n".join(f"needlework: {line}" for line in str(error).splitlines()))
# Captions read the config with every default filled in.
config.update(experiment.model_dump(mode="json"))


include: "workflow/rules/common.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/streams.smk"
include: "workflow/rules/tables.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        targets(),
    localrule: True
