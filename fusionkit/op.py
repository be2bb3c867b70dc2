"""The op object: what users call, and what they ask before and after."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fusionkit import arguments as arguments_of
from fusionkit import frameworks, kernel_function, oracle, policy, registry, select
from fusionkit import plan as plans
from fusionkit.call import describe
from fusionkit.errors import FusionkitError, NoBackendError, argument_error
from fusionkit.ledger import ledger
from fusionkit.ops import load_spec
from fusionkit.spec import Array, OpSpec

Method = TypeVar("Method", bound=Callable[..., Any])
_policy = policy.current  # a global of this file: 0.02 us less a call


@dataclass(frozen=True)
class Explanation:
    """What would run a call, and why. `str()` is for people.

    Args:
        op: the op's name.
        call: the call in words.
        chosen: the backend's name, or None when every candidate refuses.
        reason: why it is that one, or the whole refusal.
        candidates: (backend, verdict, reasons) of every installed backend.
        remarks: what the values of the tensors make doubtful.
    """

    op: str
    call: str
    chosen: str | None
    reason: str
    candidates: tuple[tuple[str, str, tuple[str, ...]], ...]
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.op} ({self.call})", f"  -> {self.chosen or 'refused'}: {self.reason.splitlines()[0]}"]
        width = max((len(name) for name, _, _ in self.candidates), default=0)
        for name, answer, reasons in self.candidates:
            lines.append(f"  {name:<{width}}  {answer:<7}  {'; '.join(reasons)}".rstrip())
        lines.extend(f"  note: {remark}" for remark in self.remarks)
        return "\n".join(lines)


class _NotTraced:
    """Tells `paddle.jit` to leave the dispatch code as it is, as `paddle.jit.not_to_static` would.

    Paddle 3.3 asks this of an object under the attribute below. Marking needs no import of Paddle, which a first call
    inside a traced function would make too late.
    """

    def need_transform(self, mode: object) -> bool:
        return False

    def need_capture_control_flow(self) -> bool:
        return False


def _not_traced(method: Method) -> Method:
    method.___jit_transform_options___ = _NotTraced()  # type: ignore[attr-defined]
    return method


class Op:
    # One fused op, by one name on every device. Call it like the function that its spec declares, whose docstring is
    # its own.

    ___jit_transform_options___ = _NotTraced()

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = "fusionkit"
        self._plans: tuple[plans.Plan, ...] = ()

    def __reduce__(self) -> str:
        """Copies and pickles are the op itself."""
        return self.__name__

    def __repr__(self) -> str:
        return f"<fusionkit op {self.__name__}{self.spec.parameters}>"

    @functools.cached_property
    def spec(self) -> OpSpec:
        return load_spec(self.__name__)

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        return self.spec.parameters

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return inspect.getdoc(self.spec.signature)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A decision made before for tensors of these types and dtypes, compared with `is`; else a new one.
        context = _policy()
        for plan in self._plans:
            if plan.context is not context or not plan.matches(args) or plan.autocast() is not None:
                continue
            if (plan.plain and not kwargs) or plan.fits_in_detail(args, kwargs):
                function = plan.function
                break
        else:
            arguments, framework = arguments_of.bind(self.spec, args, kwargs)
            mixed = arguments_of.mixed(self.spec, arguments, framework)
            if mixed is not None and framework is not None:
                args, kwargs = arguments_of.as_call(self.spec, mixed)
                with framework.without_autocast():
                    return self(*args, **kwargs)
            plan, function = plans.make(self.spec, arguments, framework, args, kwargs)
            if plan.cacheable:
                self._plans = (plan, *self._plans[: plans.MAX_PLANS - 1])
        try:
            result = function(*args, **kwargs) if kwargs else function(*args)  # empty keywords cost 0.05 us
        except Exception as error:
            self._explain_failure(error, args, kwargs)
            raise
        next(plan.calls)
        return result

    def _explain_failure(self, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A kernel refused what a remembered decision let through: raise the spec's error if it has one."""
        if isinstance(error, FusionkitError):
            return
        arguments, framework = arguments_of.bind(self.spec, args, kwargs)
        try:
            describe(self.spec, arguments, framework)
        except (TypeError, ValueError) as better:
            raise better from error

    @_not_traced
    def explain(
        self, *args: Any, device: str | None = None, backend: Any = None, training: bool | None = None, **kwargs: Any
    ) -> Explanation:
        """Which backend would run this call, and every candidate's verdict, without running it.

        Args:
            *args: the op's arguments: tensors, or `TensorSpec(shape, dtype)` for tensors that need not exist.
            device: asks about a device such as "toy:0", present or not; the tensors' own by default.
            backend: as in `use_backend`.
            training: whether gradients are wanted; None: enabled and required by some input.

        Raises:
            TypeError, ValueError: the call breaks the op's own rules, whatever the backend, or no device is called so.
        """
        if backend is not None:
            with policy.use_backend(backend):
                return self.explain(*args, device=device, training=training, **kwargs)
        arguments, framework = arguments_of.bind(self.spec, args, kwargs)
        call = describe(self.spec, arguments, framework, device, training)
        registry.require_device(call)
        try:
            selected, reason = select.select(call)
            chosen: str | None = selected.backend
        except NoBackendError as error:
            chosen, reason = None, str(error)
        candidates = [select.judge(plugin, call) for plugin in registry.plugins()]
        return Explanation(
            self.__name__,
            select.in_words(call),
            chosen,
            reason,
            tuple((c.backend, c.verdict.answer, c.verdict.reasons + select.notes(c, call)) for c in candidates),
            arguments_of.remarks(self.spec, arguments, framework),
        )

    @_not_traced
    def bind(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """The kernel for calls like this one, with the op's signature and without dispatch.

        Valid for the same dtypes, device, mask kinds and gradient mode. Other shapes are checked by the kernel.
        Automatic mixed precision is not applied and calls are not counted.
        """
        arguments, framework = arguments_of.bind(self.spec, args, kwargs)
        call = describe(self.spec, arguments, framework)
        chosen, _ = select.select(call)
        assert chosen.kernel is not None
        return kernel_function.for_later(kernel_function.for_call(chosen.kernel, call), chosen.kernel, self.spec)

    def reference(self, *arrays: Any, **kwargs: Any) -> Any:
        """The op in float64 NumPy: the oracle of every test. Takes arrays of any dtype."""
        return oracle.reference(self.spec, arguments_of.bind(self.spec, arrays, kwargs)[0])

    def reference_vjp(self, *arrays: Any, grad_outputs: Any, **kwargs: Any) -> dict[str, Array]:
        """The oracle's gradients, by input name, for the given gradients of the outputs."""
        self._require_gradient()
        return oracle.reference_vjp(self.spec, arguments_of.bind(self.spec, arrays, kwargs)[0], grad_outputs)

    def vjp(self, *arrays: Any, grad_outputs: Any, **kwargs: Any) -> dict[str, Array | None]:
        """Gradients of NumPy arrays by the chosen kernel, by input name.

        Args:
            *arrays, **kwargs: the op's arguments.
            grad_outputs: the gradient of each output, as the op returns them: one array or a tuple.

        Returns:
            For each differentiable input that is present its gradient, in the input's dtype.
        """
        self._require_gradient()
        arguments, framework = arguments_of.bind(self.spec, arrays, kwargs)
        call = describe(self.spec, arguments, framework, training=True)
        if call.framework != "numpy":
            raise argument_error(self.__name__, "vjp", "called with NumPy arrays", call.framework, kind=TypeError)
        arguments_of.check_grad_outputs(call, grad_outputs)
        chosen, reason = select.select(call)
        kernel = chosen.kernel
        assert kernel is not None
        ledger().counter(self.__name__, chosen.backend, reason).add()
        if kernel.vjp is not None:
            gradients: dict[str, Any] = kernel_function.vjp(kernel, self.__name__)(grad_outputs, **arguments)
            return gradients
        function = kernel_function.over(kernel, "paddle", self.__name__)
        return frameworks.load("paddle").vjp(function, self.spec, grad_outputs, call.device, arguments)  # type: ignore[no-any-return]

    def _require_gradient(self) -> None:
        if self.spec.reference_vjp is None:
            raise argument_error(self.__name__, "vjp", "asked of a differentiable op", "an op for inference only")
