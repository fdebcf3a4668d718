"""Models as named arrays.

adapter.py     what the trainer has to know of a kind of model, and which classes have an adapter
model.py       the arrays of a model, taken and given back
skeleton.py    what else it consists of, as bytes
watch.py       what user code does to it beside its arrays, which would be lost
nesting.py     dicts, lists and objects in one another, by path
"""

from p2p.adapters.adapter import PLAIN, Adapter, ByPath, adapter_of, check_adapter, everyone, known

__all__ = ["PLAIN", "Adapter", "ByPath", "adapter_of", "check_adapter", "everyone", "known"]
