"""Word2vec on Spark without a master: two executors, each with a replica, that tell each other what they learned.

python examples/word2vec.py                                the Wikipedia sample that comes with gensim, under a minute
python examples/word2vec.py text.txt --word paris          one sentence a line, by path, glob or URL (s3://bucket/text)
python examples/word2vec.py enwiki-...-articles.xml.bz2    a Wikipedia dump, parsed on this machine and held in memory
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pyspark
from gensim.corpora.wikicorpus import WikiCorpus
from gensim.models import Word2Vec
from gensim.test.utils import datapath
from pyspark import RDD, SparkConf, SparkContext

from p2p import DeepDist
from p2p.data import read_text
from p2p.models.word2vec import build_vocab, gradient

SAMPLE = datapath("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the workers run whichever python3 comes first on PATH


def main() -> None:
    """Train on the executors, then ask the model that came out for the neighbors of a word."""
    arguments = parse_arguments()
    sc = SparkContext(arguments.master, "word2vec", conf=spark_settings())
    try:
        corpus = read(sc, arguments.corpus).cache()
        model = Word2Vec(sg=1, vector_size=100, alpha=0.05, epochs=arguments.epochs)
        build_vocab(model, corpus)
        print(f"{model.corpus_count:,} texts, {model.corpus_total_words:,} tokens, {len(model.wv):,} frequent words")
        if arguments.word not in model.wv:
            sys.exit(f"--word {arguments.word!r} occurs less than {model.min_count} times in the corpus: name another")
        if arguments.resume:
            session = DeepDist.resume(arguments.checkpoint, model)
        else:
            session = DeepDist(model, mode=arguments.mode)
        options = {"chunk_rows": chunk_rows(arguments.corpus), "checkpoint": arguments.checkpoint}
        with session as dd:
            report = dd.train(corpus, gradient, epochs=arguments.epochs, **options)
            neighbors = dd.model.wv.most_similar(arguments.word, topn=8)
        print(f"{arguments.word}: " + ", ".join(f"{word} {similarity:.2f}" for word, similarity in neighbors))
        print(report)
    finally:
        stop(sc)


def read(sc: SparkContext, path: str) -> RDD[Any]:
    """The texts of `path` as an RDD of texts or token lists, in 8 partitions."""
    if not path.endswith(".bz2"):
        return read_text(path, partitions=8, sc=sc)
    articles = WikiCorpus(path, processes=1, dictionary={})  # an empty dictionary spares a pass over the dump
    return sc.parallelize(list(articles.get_texts()), 8)


def chunk_rows(path: str) -> int:
    """Texts that an executor trains between two exchanges: some 20,000 words, as articles or as sentences."""
    return 4 if path.endswith(".bz2") else 1000


def spark_settings() -> SparkConf:
    """Share the work evenly: wait for all executors, and then give any partition to whoever is free."""
    return (
        SparkConf()
        .set("spark.scheduler.minRegisteredResourcesRatio", "1.0")
        .set("spark.locality.wait", "0s")  # else partitions stay where they were first read and cached
        .set("spark.ui.showConsoleProgress", "false")
    )


def stop(sc: SparkContext) -> None:
    """Stop Spark and remove the folder that `local-cluster` leaves in the installed pyspark; no setting moves it."""
    work = Path(os.environ.get("SPARK_HOME", Path(pyspark.__file__).parent)) / "work"
    application, leaves_work = sc.applicationId, sc.master.startswith("local-cluster")
    sc.stop()
    if leaves_work:
        shutil.rmtree(work / application, ignore_errors=True)
        if work.exists() and not any(work.iterdir()):
            work.rmdir()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", default=SAMPLE, help="path or URL of text, or a Wikipedia dump (.xml.bz2)")
    parser.add_argument("--master", default="local-cluster[2,1,1024]", help="default: two executors on this machine")
    parser.add_argument("--mode", choices=["p2p", "master"], default="p2p")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--word", default="moon")
    parser.add_argument("--checkpoint", metavar="PATH", help="write checkpoints there, a folder or a URL")
    parser.add_argument("--resume", action="store_true", help="go on with the newest checkpoint at PATH")
    arguments = parser.parse_args()
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume without --checkpoint PATH")
    return arguments


if __name__ == "__main__":
    main()
