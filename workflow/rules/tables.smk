# All tables of the report on one page.


rule show_tables:
    input:
        tables(),
    output:
        html=report(
            f"{RESULTS}/tables.html",
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "All tables, to sort and search"},
        ),
    log:
        f"{RESULTS}/logs/show_tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/show_tables.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("show_tables.py"),
    script:
        "../scripts/show_tables.py"
