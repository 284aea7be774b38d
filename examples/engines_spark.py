"""Score Parquet files by Spark, whose Python workers each open the run once.

pip install 'diffeo[spark]' (and Java 17); python examples/engines_spark.py RUN DATA OUT
"""

import sys

from pyspark.sql import SparkSession
from pyspark.sql.types import DoubleType, StructField, StructType

import diffeo

run, data, out = sys.argv[1:]
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
rows, scorer = spark.read.parquet(data), diffeo.Scorer(run)
schema = StructType([*rows.schema, *(StructField(name, DoubleType()) for name in scorer.added)])
scored = rows.mapInArrow(lambda batches: map(scorer, batches), schema)
scored.write.parquet(out)
spark.stop()
