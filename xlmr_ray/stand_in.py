"""Our classes stand in for transformers' where that library is loaded: `isinstance(model, PreTrainedModel)` holds.

Its Trainer writes a configuration beside the weights, and tied weights once, only for what is one, and pads batches
only with what is one of its tokenizers.
"""

import functools
import sys
from typing import TYPE_CHECKING, Any, ClassVar


class StandIn:
    """Its instances pass as ones of `stands_in_for`, a module and a class of it, too, once somebody has imported that.

    Python settles `isinstance` by an object's `__class__` where the type does not say yes.
    """

    stands_in_for: ClassVar[tuple[str, str]]

    def own_class(self) -> type:
        module, name = self.stands_in_for
        ours: type = type(self)
        theirs = getattr(sys.modules.get(module), name, None)
        return ours if theirs is None else both(ours, theirs)

    def set_class(self, value: type) -> None:
        vars(object)["__class__"].__set__(self, value)

    if not TYPE_CHECKING:
        __class__ = property(own_class, set_class)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle's own way wants `__class__` to be the type.
        return blank, (type(self),), self.__getstate__()


@functools.cache
def both(ours: type, theirs: type) -> type:
    """A class with both above it, to be asked and not to be made: a call makes one of ours."""
    if issubclass(ours, theirs):
        return ours
    names = {"__module__": ours.__module__, "__qualname__": ours.__qualname__, "__doc__": ours.__doc__}
    return type(ours.__name__, (ours, theirs), {**names, "__new__": lambda cls, *values, **by: ours(*values, **by)})


def blank(cls: type) -> Any:
    """An instance without its attributes, as pickle makes one."""
    return object.__new__(cls)
