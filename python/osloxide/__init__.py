"""osloxide: a native core for OpenStack services, in the place of oslo.service's internals.

Owns the public door: :func:`install` and :func:`is_installed`. Importing the package does nothing
else, and imports nothing before one of them is asked for: a health probe is a program of this
package that is started every few seconds. docs/api.md lists what is public, everything else may
move without notice.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osloxide.activation.import_hook import install, is_installed

__all__ = ["install", "is_installed"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from osloxide.activation import import_hook

        return getattr(import_hook, name)
    if name == "_native":
        # Asked before `from osloxide import _native` looks for the module.
        from osloxide.activation import native_module

        if fault := native_module.fault():
            raise ImportError(fault, name=native_module.NAME)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
