"""Fit the Lambda target to a pretrained encoder: landmarks by k-means, query side and local term by least squares.

Contract: a stock encoder, its attention sites and batches of token ids in; one dictionary of float32 arrays a site out,
named as the parameters of `LambdaAttention`. Nothing is trained and the encoder is left as it came. The same inputs,
options and number of threads give the same bits.

A head of the converted layer is linear in θ, f = d + 1 by s = c + r of them (see `lambda_attention`):

    y[n] ≈ Σ_i,s θ[i,s] q̃[n,i] B[n,s],   q̃ = [q; 1],   B[n] = [λ_1 … λ_c; v_{n−⌊r/2⌋} … v_{n+⌊r/2⌋}]

so its normal matrix is Σ_n (q̃ q̃ᵀ) ⊗ (B Bᵀ): a product of two packed lists of pairs over positions. Neither the (f·s)
features nor B are ever formed: λλᵀ is constant within a text, λvᵀ and vvᵀ are windows of one small table.

Axes: b text, h head, t position, d head width, c landmark, j offset in the local context, f = d + 1, p pair of f's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...convert.errors import BadInputError
from ...convert.options import Progress
from ...convert.target import Calibration, Context
from ..teacher import AttentionRun, AttentionSite, attention_sites, fixed_threads, load_teacher, watch
from ..text_batches import read_text, text_batches

LENGTHS = (512, 256, 128, 64, 32)  # of the calibration texts: a fit on one length alone loses on the others
# Positions handled at once: the packed pairs of 12 heads of width 64 then take 50 MB.
CHUNK = 512


@dataclass(frozen=True, slots=True)
class LambdaFit:
    """What is fitted and how. The defaults are what was best on all-MiniLM-L6-v2 (see `measure.py`).

    key_depth × intra_depth landmarks and the mean; local_context odd, 0 for none; ridge relative to each feature's own
    mean square; landmark_samples queries a head for k-means; memory bounds the normal matrices (bytes).
    """

    key_depth: int = 16
    intra_depth: int = 1
    local_context: int = 15
    ridge: float = 1e-3
    output_metric: bool = False
    seed: int = 0
    landmark_samples: int = 6000
    landmark_iterations: int = 25
    memory: int = 2**30

    def __post_init__(self) -> None:
        if self.key_depth < 1 or self.intra_depth < 1:
            raise ValueError(
                f"key_depth and intra_depth must be at least 1, got {self.key_depth} and {self.intra_depth}"
            )
        if self.local_context < 0 or (self.local_context and self.local_context % 2 == 0):
            raise ValueError(f"local_context must be odd, or 0 for no local term, got {self.local_context}")


@fixed_threads()
def calibrate_lambda(context: Context, folder: Path, progress: Progress) -> Calibration:
    """The parameters of every layer's `LambdaAttention`, fitted on the options' calibration text."""
    options = context.options
    fit = LambdaFit(
        key_depth=options.key_depth,
        intra_depth=options.intra_depth,
        local_context=options.local_context,
        seed=context.seed,
    )
    model, tokenizer = load_teacher(folder, context.config)
    text = read_text(options.calibrate, tokenizer, model.config.vocab_size)
    reach = context.family.longest(context.config)
    lengths = [length for length in LENGTHS if length <= reach] or [reach]
    batches = text_batches(text.tokens, text.prefix, text.suffix, lengths)
    sites = attention_sites(model, context.family, context.config)
    found = fit_lambda(
        model, sites, batches, fit, lambda stage, done, total: progress(f"calibrate: {stage}", done, total)
    )
    path = context.family.code.attention_path
    values = {
        f"{site.name}.{path}.mix.{name}": array
        for site, arrays in zip(sites, found, strict=True)
        for name, array in arrays.items()
    }
    used = sum(batch.numel() for batch in batches)
    return Calibration(values, {**text.record, "tokens_used": used, "lengths": lengths, "findings": text.findings})


def fit_lambda(
    model: nn.Module,
    sites: Sequence[AttentionSite],
    batches: Sequence[Tensor],
    fit: LambdaFit | None = None,
    progress: Progress | None = None,
) -> list[dict[str, np.ndarray]]:
    """One dict a site: landmarks, content_weight (h, c, d), content_bias (h, c), local_weight (h, r, d), local_bias.

    `batches`: token ids (b, t) without padding; a batch's texts have one length, batches may differ in theirs.
    `progress(stage, done, total)` is called as work proceeds, also with ("solve", …).
    """
    fit, report = fit or LambdaFit(), progress or (lambda *_: None)
    positions = sum(x.numel() for x in batches)
    needed = 4 * fit.key_depth * fit.intra_depth
    if positions < needed:
        raise BadInputError(
            f"the calibration text has {positions} tokens, too few for {needed // 4} landmarks",
            where="--calibrate",
            hint="give a longer text",
        )
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            landmarks = _find_landmarks(model, sites, batches, fit, report)
            return list(_fit_sites(model, sites, landmarks, batches, fit, report))
    finally:
        model.train(was_training)


def _find_landmarks(
    model: nn.Module, sites: Sequence[AttentionSite], batches: Sequence[Tensor], fit: LambdaFit, report: Progress
) -> list[Tensor]:
    """(h, c, d) a site: centroids of q/√d, then a row of zeros, whose softmax is the mean."""
    stride = max(1, sum(x.numel() for x in batches) // fit.landmark_samples)
    drawn: list[list[Tensor]] = [[] for _ in sites]

    def keep(rows: list[Tensor]) -> Callable[[AttentionRun], None]:
        def receive(run: AttentionRun) -> None:
            rows.append(run.by_head()[0].transpose(0, 1).flatten(1, 2)[:, ::stride].clone())

        return receive

    with watch([(site, keep(rows)) for site, rows in zip(sites, drawn, strict=True)]):
        for i, batch in enumerate(batches):
            model(input_ids=batch)
            report("queries", i + 1, len(batches))
    out = []
    for i, rows in enumerate(drawn):
        q = torch.cat(rows, 1)
        generator = torch.Generator().manual_seed(fit.seed * 100_003 + i)
        w = _kmeans(q * q.shape[-1] ** -0.5, fit.key_depth * fit.intra_depth, fit.landmark_iterations, generator)
        out.append(torch.cat([w, w.new_zeros(w.shape[0], 1, w.shape[2])], 1))
        report("landmarks", i + 1, len(sites))
    return out


def _kmeans(x: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds, all heads at once: x (h, n, d) → centroids (h, count, d)."""
    h, n, d = x.shape

    def rows(index: Tensor) -> Tensor:
        return x.gather(1, index[..., None].expand(-1, -1, d))

    centroids = rows(torch.randint(n, (h, 1), generator=generator))
    nearest = (x - centroids).square().sum(-1)
    for _ in range(count - 1):
        # The floor keeps a draw possible where a head's queries are all alike.
        new = rows(torch.multinomial(nearest.clamp_min(1e-12), 1, generator=generator))
        centroids = torch.cat([centroids, new], 1)
        nearest = torch.minimum(nearest, (x - new).square().sum(-1))
    for _ in range(iterations):
        member = (x @ centroids.transpose(1, 2) - 0.5 * centroids.square().sum(-1)[:, None]).argmax(-1)
        one_hot = F.one_hot(member, count).to(x.dtype)
        size = one_hot.sum(1)[..., None]
        # A centroid that lost all its queries stays where it was.
        centroids = torch.where(size > 0, one_hot.transpose(1, 2) @ x / size.clamp_min(1), centroids)
    return centroids


@dataclass(slots=True)
class _NormalEquations:
    """The packed normal matrix of every head of one site: pairs p of q̃ by pairs of rows of B."""

    landmarks: Tensor  # h c d
    local: int  # r
    root: Tensor | None  # h d d: outputs are compared as y·root
    content: Tensor = field(init=False)  # h p c c
    cross: Tensor = field(init=False)  # h p (c r)
    near: Tensor = field(init=False)  # h p (r(r+1)/2)
    right: Tensor = field(init=False)  # h f (c + r)

    def __post_init__(self) -> None:
        h, c, d = self.landmarks.shape
        f, r = d + 1, self.local
        p = f * (f + 1) // 2
        self.content, self.cross, self.near, self.right = (
            torch.zeros(shape, dtype=torch.float64)
            for shape in ((h, p, c * c), (h, p, c * r), (h, p, r * (r + 1) // 2), (h, f, c + r))
        )

    def add(self, run: AttentionRun) -> None:
        """Texts without padding."""
        q, k, v, y = run.by_head()
        t = q.shape[2]
        for s in range(0, q.shape[0], max(1, CHUNK // t)):
            part = slice(s, s + max(1, CHUNK // t))
            self._add(*(x[part].transpose(0, 1).contiguous() for x in (q, k, v, y)))

    def _add(self, q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:  # h b t d from here on
        h, b, t, _ = q.shape
        c, r = self.landmarks.shape[1], self.local
        lam = (self.landmarks[:, None] @ k.transpose(2, 3)).softmax(-1) @ v  # h b c d
        if self.root is not None:
            v, y, lam = (x @ self.root[:, None] for x in (v, y, lam))
        ones = q.new_ones(h, 1, b * t)
        qt = torch.cat([q.flatten(1, 2).transpose(1, 2), ones], 1)  # h f (b t)
        first, second = torch.triu_indices(qt.shape[1], qt.shape[1])
        pairs = qt[:, first] * qt[:, second]  # h p (b t)
        # λλᵀ is the same for every position of a text.
        within = pairs.unflatten(2, (b, t)).sum(-1)  # h p b
        self.content += (within @ (lam @ lam.transpose(2, 3)).flatten(2)).double()
        targets = lam @ y.transpose(2, 3)  # h b c t
        if r:
            edge = r // 2
            padded = F.pad(v, (0, 0, edge, edge))
            cross = F.pad(lam @ v.transpose(2, 3), (edge, edge)).unfold(-1, r, 1)  # h b c t j
            cross = cross.permute(0, 2, 4, 1, 3).reshape(h, c * r, b * t)
            self.cross += (pairs @ cross.transpose(1, 2)).double()
            self.near += (pairs @ _window_pairs(padded, t, r).transpose(1, 2)).double()
            local = torch.stack([(padded[:, :, j : j + t] * y).sum(-1) for j in range(r)], 2)  # h b j t
            targets = torch.cat([targets, local], 2)
        self.right += (qt @ targets.permute(0, 1, 3, 2).flatten(1, 2)).double()

    def solve(self, head: int, ridge: float) -> Tensor:
        """θ (f, c + r) of one head, float64."""
        f, rows = self.right.shape[1:]
        c, r = self.landmarks.shape[1], self.local
        table = torch.empty(self.content.shape[1], rows, rows, dtype=torch.float64)
        table[:, :c, :c] = self.content[head].unflatten(1, (c, c))
        if r:
            cross = self.cross[head].unflatten(1, (c, r))
            table[:, :c, c:], table[:, c:, :c] = cross, cross.transpose(1, 2)
            table[:, c:, c:] = self.near[head][:, _packed_index(r)]
        normal = table[_packed_index(f)].permute(0, 2, 1, 3).reshape(f * rows, f * rows)
        diagonal = normal.diagonal()
        # Each feature is shrunk by its own size; the floor is for features that the text never showed.
        diagonal += ridge * diagonal.clone() + 1e-9 * diagonal.mean().clamp_min(1e-30)
        factor = torch.linalg.cholesky(normal)
        return torch.cholesky_solve(self.right[head].reshape(-1, 1), factor).reshape(f, rows)


def _packed_index(n: int) -> Tensor:
    """(n, n) → the place of the pair (i, j) in `triu_indices(n, n)`, the same for (j, i)."""
    i, j = torch.triu_indices(n, n)
    index = torch.empty(n, n, dtype=torch.long)
    index[i, j] = index[j, i] = torch.arange(len(i))
    return index


def _window_pairs(padded: Tensor, t: int, r: int) -> Tensor:
    """v[n + i]·v[n + j] for the pairs i ≤ j of a window: (h, pair, (b t)) from the padded v (h, b, t + r − 1, d)."""
    length = padded.shape[2]
    # By difference: the product at distance j − i, read from offset i on.
    by_distance = [(padded[:, :, : length - g] * padded[:, :, g:]).sum(-1) for g in range(r)]
    pairs = zip(*(x.tolist() for x in torch.triu_indices(r, r)), strict=True)
    return torch.stack([by_distance[j - i][:, :, i : i + t] for i, j in pairs], 1).flatten(2)


def _fit_sites(
    model: nn.Module,
    sites: Sequence[AttentionSite],
    landmarks: Sequence[Tensor],
    batches: Sequence[Tensor],
    fit: LambdaFit,
    report: Progress,
) -> Iterator[dict[str, np.ndarray]]:
    """As many sites a pass over the text as their normal matrices fit into memory."""
    h, c, d = landmarks[0].shape
    r = fit.local_context
    each = 8 * h * (d + 1) * (d + 2) // 2 * (c * c + c * r + r * (r + 1) // 2)
    group = max(1, fit.memory // each)
    passes = -(-len(sites) // group)
    for start in range(0, len(sites), group):
        part = range(start, min(start + group, len(sites)))
        equations = [
            _NormalEquations(landmarks[i], r, _output_root(sites[i]) if fit.output_metric else None) for i in part
        ]
        with watch([(sites[i], e.add) for i, e in zip(part, equations, strict=True)]):
            for n, batch in enumerate(batches):
                model(input_ids=batch)
                report("statistics", start // group * len(batches) + n + 1, passes * len(batches))
        for i, e in zip(part, equations, strict=True):
            theta = torch.stack([e.solve(head, fit.ridge) for head in range(h)]).float()  # h f s
            yield _arrays(landmarks[i], theta)
            report("solve", i + 1, len(sites))


def _output_root(site: AttentionSite) -> Tensor:
    """(h, d, d) symmetric root of W_oᵀW_o a head: distances as the residual stream sees them."""
    weight = site.output.weight
    assert isinstance(weight, Tensor)
    w = weight.detach().float()  # D (h d)
    w = w.unflatten(1, (site.heads, -1)).transpose(0, 1)  # h D d
    values, vectors = torch.linalg.eigh((w.transpose(1, 2) @ w).double())
    return (vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.transpose(1, 2)).float()


def _arrays(landmarks: Tensor, theta: Tensor) -> dict[str, np.ndarray]:
    c = landmarks.shape[1]
    weight, bias = theta[:, :-1].transpose(1, 2), theta[:, -1]
    arrays = {"landmarks": landmarks, "content_weight": weight[:, :c], "content_bias": bias[:, :c]}
    if weight.shape[1] > c:
        arrays |= {"local_weight": weight[:, c:], "local_bias": bias[:, c:]}
    return {name: x.contiguous().numpy() for name, x in arrays.items()}
