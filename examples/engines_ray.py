"""Score Parquet files by Ray Data, with two actors that each open the run once.

pip install 'diffeo[ray]'; python examples/engines_ray.py RUN DATA OUT
"""

import sys

import ray

import diffeo

run, data, out = sys.argv[1:]
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)  # on a cluster: ray.init()
ray.data.DataContext.get_current().execution_options.preserve_order = True
rows = ray.data.read_parquet(data)
pool = ray.data.ActorPoolStrategy(size=2)
scored = rows.map_batches(
    diffeo.Scorer, fn_constructor_args=[run], batch_format="pyarrow", compute=pool, num_cpus=1, batch_size=65536
)
scored.write_parquet(out)
