"""Score Parquet files by Daft, column by column of a batch.

pip install 'diffeo[daft]'; python examples/engines_daft.py RUN DATA OUT
"""

import sys

import daft

import diffeo

run, data, out = sys.argv[1:]
scorer = diffeo.Scorer(run)


@daft.func.batch(return_dtype=daft.DataType.float64())
def log_likelihood(*columns: daft.Series) -> daft.Series:
    """The log-likelihood of every row, given the columns of a batch."""
    batch = {column.name(): column.to_arrow() for column in columns}
    return daft.Series.from_numpy(scorer(batch)["log_likelihood"])


rows = daft.read_parquet(data)
scored = rows.with_column("log_likelihood", log_likelihood(*map(daft.col, rows.column_names)))
scored.write_parquet(out)
