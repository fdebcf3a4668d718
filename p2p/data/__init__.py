"""Readers of files by URL: each makes blocks of rows that the models take, as partitions or as an RDD of Spark.

    read_idx       MNIST's format: images and labels            (features (n, d) float32, labels (n,) int64)
    read_libsvm    sparse rows, indices from 1                  (CSR of (n, features) float32, labels (n,))
    read_csv       numbers, with a header or without            (features (n, d) float32, labels (n,))
    read_text      one row a line                               str

Without `sc=` a reader returns a list of partitions, which processes of this machine and simulated clusters read where
they train. With it, an RDD. A path may be a local one, or any URL that fsspec knows: s3:// needs s3fs, hdfs:// pyarrow,
webhdfs:// requests.
"""

from p2p.data.csv_files import read_csv
from p2p.data.idx import read_idx
from p2p.data.libsvm import read_libsvm
from p2p.data.text import read_text

__all__ = ["read_csv", "read_idx", "read_libsvm", "read_text"]
