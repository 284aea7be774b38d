"""Score Parquet files by Dask, with two processes that each open the run once.

pip install 'diffeo[dask]'; python examples/engines_dask.py RUN DATA OUT
"""

import sys

import dask.dataframe as dd
from dask.distributed import Client

import diffeo

if __name__ == "__main__":  # the processes begin by importing this file
    run, data, out = sys.argv[1:]
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
        rows, scorer = dd.read_parquet(data), diffeo.Scorer(run)
        scored = rows.map_partitions(scorer, meta=scorer(rows._meta))
        scored.to_parquet(out)
