"""Models as named arrays.

adapter.py     what the trainer has to know of a class of models, and which classes have an adapter
model.py       the arrays of a model, taken and given back
skeleton.py    the rest of the model, as bytes
watch.py       changes by user code beside its arrays, which would be lost
sparse.py      what an update says of an array: all of it, some rows, or a sparse matrix
matrices.py    sparse matrices as the arrays that they are made of
nesting.py     dicts, lists and objects in one another, by path
"""

from p2p.adapters.adapter import PLAIN, Adapter, ByPath, adapter_of, check_adapter, everyone, known

__all__ = ["PLAIN", "Adapter", "ByPath", "adapter_of", "check_adapter", "everyone", "known"]
