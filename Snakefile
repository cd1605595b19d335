# needlework: one experiment, from data to report. The experiment is config.yaml or --configfile.
import sys

from snakemake.utils import min_version

from needlework.pipeline.code_version import code_version
from needlework.config.parsing.load import load_experiment
from needlework.pipeline.output_dir import require_writable

min_version("9.27")

# A file that --configfile names stands alone. Snakemake would merge it over this one, and do so in
# the jobs of a cluster even where replace-workflow-config is set: it does not hand that on.
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
# With every default filled in, for captions.
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
