"""What stands in front of each layer that is trained quantized: modules for its input and its weight."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, distributed, nn

from amct_onnx.errors import DataError
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams, round_to_fp16
from amct_onnx.retrain.fake_quant import Grid, grid_of_range, quantized_activation, quantized_weight
from amct_onnx.retrain.planning import RetrainLayer, RetrainPlan
from amct_onnx.retrain_config import UlqRetrain


class ActivationQuantizer(nn.Module):
    """Puts a tensor on a grid between two learned limits (ULQ).

    Without limits given, IFMR finds them on the first `batch_num` batches of either mode; until then each batch is
    quantized on its own range. In DistributedDataParallel they are the mean over the processes.

    What was seen on the way to the limits is part of the `state_dict`, as one tensor of some 500 KB; afterwards it is
    empty.

    Attributes:
        clip_max, clip_min: the limits, parameters of shape [].
        clip_max_before, clip_min_before: of the last training step, to fall back on where the two cross.
        is_initialized: whether they were found.
        seen: batches that they were looked for on.
    """

    def __init__(self, layer: RetrainLayer, plan: RetrainPlan) -> None:
        super().__init__()
        activation = layer.activation
        self.layer_name, self.batch_num, self.fp16_scales = layer.name, plan.batch_num, plan.fp16_scales
        self.num_bits, self.symmetric, self.fixed_min = activation.num_bits, layer.symmetric, layer.fixed_min
        is_given = activation.clip_max is not None
        limits = (activation.clip_max, activation.clip_min) if is_given else (0.0, 0.0)
        for name, value in zip(("clip_max", "clip_min"), limits, strict=True):
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float32)))
            self.register_buffer(f"{name}_before", torch.tensor(value, dtype=torch.float32))
        self.register_buffer("is_initialized", torch.tensor(is_given))
        self._observer: IfmrObserver | None = None
        self.seen = 0

    clip_max: Tensor
    clip_min: Tensor
    clip_max_before: Tensor
    clip_min_before: Tensor
    is_initialized: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        values = x.to(torch.float32)
        if self.is_initialized:
            self._observer = None  # in DistributedDataParallel, another process may have been the first
        else:
            self._observe(values)
        high, low = self._limits()
        if self.training:
            with torch.no_grad():
                for kept, value in ((self.clip_max, high), (self.clip_min, low)):
                    kept.copy_(value)
                self.clip_max_before.copy_(high)
                self.clip_min_before.copy_(low)
        return quantized_activation(values, self.clip_max, self.clip_min, high, low, self._grid(high, low)).to(x.dtype)

    def _limits(self) -> tuple[Tensor, Tensor]:
        """The limits in use: where training has moved one across the other or across zero, that of before."""
        high, low = self.clip_max.detach().clone(), self.clip_min.detach().clone()
        low = torch.zeros_like(low) if self.fixed_min else low
        is_flat = high == low
        old_high, old_low = self.clip_max_before, self.clip_min_before
        is_low_wrong = is_flat | ((high >= 0) & (low > 0))
        return torch.where(is_flat | (high < 0), old_high, high), torch.where(is_low_wrong, old_low, low)

    def _grid(self, high: Tensor, low: Tensor) -> Grid:
        grid = grid_of_range(low, high, num_bits=self.num_bits, symmetric=self.symmetric)
        if not self.fp16_scales:
            return grid
        scale = torch.as_tensor(round_to_fp16(grid.scale.cpu().numpy()), device=high.device)
        return Grid(scale=scale, offset=grid.offset, num_bits=self.num_bits)

    def _observe(self, x: Tensor) -> None:
        if not x.numel():
            raise DataError(f"the input of layer {self.layer_name!r} is empty; its limits cannot be found on it")
        if self._observer is None:
            self._observer = self._new_observer()
        self._observer.update(x.detach().cpu().numpy())
        if not self._observer.finite:
            raise DataError(f"the input of layer {self.layer_name!r} holds NaN or infinity")
        self.seen += 1
        if self.seen < self.batch_num:
            limits = [x.detach().max(), x.detach().min()]
        else:
            scale = self._observer.params().scale.astype(np.float64)
            half = 1 << (self.num_bits - 1)
            limits = [torch.tensor((half - 1) * scale), torch.tensor(-half * scale)]
            self._observer = None
            self.is_initialized.fill_(True)
        with torch.no_grad():
            for kept, value in zip((self.clip_max, self.clip_min), limits, strict=True):
                kept.copy_(value)
                if self.training:
                    _average(kept)
            self.clip_max_before.copy_(self.clip_max)
            self.clip_min_before.copy_(self.clip_min)

    def _new_observer(self) -> IfmrObserver:
        return IfmrObserver(Ifmr(num_bits=self.num_bits), asymmetric=False)

    def get_extra_state(self) -> Tensor:
        """What torch writes into the `state_dict` beside parameters and buffers."""
        if self._observer is None:
            return torch.zeros(0, dtype=torch.int64)
        return torch.from_numpy(np.append(self._observer.state(), self.seen))

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave.

        Raises:
            RuntimeError: it is no such state.
        """
        self._observer, self.seen = None, 0
        values = np.asarray(state)
        if values.size:
            observer = self._new_observer()
            try:
                observer.resume(values[:-1])
            except (ValueError, IndexError) as error:
                raise RuntimeError(f"the batches seen by layer {self.layer_name!r} cannot be read: {error}") from error
            self._observer, self.seen = observer, int(values[-1])

    def params(self) -> QuantParams:
        """Scale and offset that are in use now."""
        grid = self._grid(*self._limits())
        return QuantParams(
            scale=grid.scale.cpu().numpy(), offset=grid.offset.cpu().numpy().astype(np.int32), num_bits=self.num_bits
        )


def _average(value: Tensor) -> None:
    """The mean over all processes, in place."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(value)
        value /= distributed.get_world_size()


class WeightQuantizer(nn.Module):
    """Puts a weight on a grid without offset: of its present range (ARQ), or of a learned scale (ULQ).

    Where folding BatchNormalization will turn the sign of an output channel, its grid is turned too: from -127 to 128
    steps, which become -128 to 127.

    Attributes:
        scale: [Cout] or [1], of which the magnitude counts; a parameter for ULQ, missing for ARQ.
        is_initialized: whether a learned scale has begun; it begins as that of the range.
    """

    def __init__(self, layer: RetrainLayer, channels: int) -> None:
        super().__init__()
        weight = layer.weight
        self.axis, self.group = layer.axis, layer.group
        self.num_bits, self.channel_wise = weight.num_bits, bool(weight.channel_wise)
        self.learned = isinstance(weight, UlqRetrain)
        if self.learned:
            self.scale = nn.Parameter(torch.ones(channels if self.channel_wise else 1))
            self.register_buffer("is_initialized", torch.tensor(False))

    is_initialized: Tensor

    def forward(self, weight: Tensor, *factors: Tensor) -> Tensor:
        """`weight` on the grid.

        Args:
            weight: in the operator's own layout.
            factors: [Cout] or one number each, whose product has the sign that folding gives the output channels.
        """
        rows = self._channels_first(weight.to(torch.float32))
        sign = _sign(factors, rows)
        rows = rows * sign
        if not self.channel_wise:
            rows = rows.reshape(1, *rows.shape)
        scale, grid = self._scale_and_grid(rows)
        y = quantized_weight(rows, scale, grid)
        return self._restored((y if self.channel_wise else y[0]) * sign, weight).to(weight.dtype)

    def _scale_and_grid(self, rows: Tensor) -> tuple[Tensor, Grid]:
        flat = rows.detach().reshape(len(rows), -1)
        along = (-1, *([1] * (rows.ndim - 1)))
        if not self.learned:
            scale = self._grid_of_rows(flat).scale
        else:
            if not self.is_initialized:
                self._begin(flat)
                self.is_initialized.fill_(True)
            scale = self.scale.abs().clamp(min=FLT_EPS)  # a step is positive, wherever training takes its parameter
        used = scale.detach().reshape(along)
        return scale, Grid(scale=used, offset=torch.zeros_like(used), num_bits=self.num_bits)

    def begin(self, weight: Tensor, *factors: Tensor) -> None:
        """Let a learned scale begin as that of the range, until the first forward pass does so with what it sees.

        In DistributedDataParallel, all processes then have one, also those that did not take part in that pass.
        """
        if self.learned:
            rows = self._channels_first(weight.detach().to(torch.float32))
            rows = rows * _sign(factors, rows)
            self._begin(rows.reshape(len(rows) if self.channel_wise else 1, -1))

    def _begin(self, flat: Tensor) -> None:
        with torch.no_grad():
            self.scale.copy_(self._grid_of_rows(flat).scale)

    def _grid_of_rows(self, flat: Tensor) -> Grid:
        return grid_of_range(flat.amin(1), flat.amax(1), num_bits=self.num_bits, symmetric=True)

    def _channels_first(self, weight: Tensor) -> Tensor:
        parts = weight.reshape(self.group, -1, *weight.shape[1:]).movedim(self.axis + 1, 1)
        return parts.reshape(-1, *parts.shape[2:])

    def _restored(self, rows: Tensor, weight: Tensor) -> Tensor:
        parts = rows.reshape(self.group, -1, *rows.shape[1:]).movedim(1, self.axis + 1)
        return parts.reshape(weight.shape)

    def params(self, weight: Tensor, *factors: Tensor) -> QuantParams:
        """Scale, [] or [Cout] along axis 0 of the weight with its output channels first; arguments as of `forward`."""
        rows = self._channels_first(weight.detach().to(torch.float32))
        rows = rows * _sign(factors, rows)
        scale, _ = self._scale_and_grid(rows if self.channel_wise else rows.reshape(1, *rows.shape))
        values = scale.detach().cpu().numpy().astype(np.float32)
        values = values if self.channel_wise else values.reshape(())
        return QuantParams(
            scale=values,
            offset=np.zeros(values.shape, np.int32),
            num_bits=self.num_bits,
            axis=0 if self.channel_wise else None,
        )


def _sign(factors: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """-1 for the rows that are turned, else 1; of as many axes as `rows`."""
    sign = torch.ones(len(rows), device=rows.device)
    for factor in factors:
        sign = torch.where(factor.detach().reshape(-1) < 0, -sign, sign)
    return sign.reshape(-1, *([1] * (rows.ndim - 1)))
