"""The released procedures of the editors, plainly: dense matrices, one fact at a time, whole
forwards of one row, forward hooks.

Written from a description of the released code (numbers in brackets are its steps), not from
acelib, with which tests compare it; only ``Edit`` and ``LM`` (a model and its tokenizer) are
shared. One row at a time nothing is padded. Where released code is at fault the intended behaviour
stands here, and the docstring names the fault.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch

#: Module names, as released hyper-parameter files give them.
LLAMA = dict(
    block="model.layers.{}",
    attn="model.layers.{}.self_attn.o_proj",
    mlp="model.layers.{}.mlp",
    fc1="model.layers.{}.mlp.gate_proj",
    fc2="model.layers.{}.mlp.down_proj",
)
MODULES = {
    "gpt2": dict(
        block="transformer.h.{}",
        attn="transformer.h.{}.attn.c_proj",
        mlp="transformer.h.{}.mlp",
        fc1="transformer.h.{}.mlp.c_fc",
        fc2="transformer.h.{}.mlp.c_proj",
    ),
    "gptj": dict(
        block="transformer.h.{}",
        attn="transformer.h.{}.attn.out_proj",
        mlp="transformer.h.{}.mlp",
        fc1="transformer.h.{}.mlp.fc_in",
        fc2="transformer.h.{}.mlp.fc_out",
    ),
    "llama": LLAMA,
    "qwen3": LLAMA,
}


# ---------------------------------------------------------------------- the model, from outside


def module(lm, part, layer):
    return lm.model.get_submodule(MODULES[lm.model.config.model_type][part].format(layer))


def weight(lm, layer):
    """The edited matrix as (d, m); GPT-2 stores its transpose."""
    W = module(lm, "fc2", layer).weight
    return W.T if lm.model.config.model_type == "gpt2" else W


@torch.no_grad()
def write(lm, changes):
    for layer, dW in changes.items():
        weight(lm, layer).add_(dW)


def ids_of(lm, text):
    return lm.tokenizer(text)["input_ids"]


def target_ids(lm, target):
    """Tokens of an answer behind a prompt: with one leading space. (Released ROME and FT prepend
    one always, KN never does.)
    """
    return lm.tokenizer(" " + target.strip(), add_special_tokens=False)["input_ids"]


def run(lm, ids, add=(), read=()):
    """A whole forward of one row: logits (p, v), and {module: (what goes in (p, .), what comes out
    (p, .))} for the modules ``read``.

    add: (module, position, vector): pushes on what comes out.
    """
    seen, hooks = {}, []

    def pusher(position, vector):
        def hook(_, args, out):
            h = out[0] if isinstance(out, tuple) else out
            push = torch.zeros_like(h)
            push[0, position] = vector
            return (h + push, *out[1:]) if isinstance(out, tuple) else h + push

        return hook

    def reader(which):
        def hook(_, args, out):
            seen[which] = args[0][0], (out[0] if isinstance(out, tuple) else out)[0]

        return hook

    try:
        hooks += [
            which.register_forward_hook(pusher(position, vector)) for which, position, vector in add
        ]
        hooks += [which.register_forward_hook(reader(which)) for which in read]
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0], seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def restored(lm):
    """The edited matrices come back at the end."""
    kept = {name: value.clone() for name, value in lm.model.state_dict().items()}
    try:
        yield
    finally:
        lm.model.load_state_dict(kept)


# ---------------------------------------------------------------------- 1.0 what is asked


class Ask(NamedTuple):
    """A prompt in two parts: ``before`` ends with the token that is edited."""

    before: str
    after: str
    target: str
    subject: str

    def row(self, lm, context=""):
        """Token ids and lookup index: len(tokens of everything up to the lookup token) - 1, on the
        joined string.
        """
        return ids_of(lm, context + self.before + self.after), len(
            ids_of(lm, context + self.before)
        ) - 1


def at_subject(edit):
    before, after = edit.prompt.split("{}")
    return Ask(before + edit.subject, after, edit.target_new, edit.subject)


def at_last(edit, prompt=None):
    return Ask(prompt or edit.prompt.replace("{}", edit.subject), "", edit.target_new, edit.subject)


# ---------------------------------------------------------------------- 1.0 target vectors, keys


def target_vector(  # noqa: PLR0913 - the settings of the released code
    lm, ask, modules, contexts, *, steps, lr, decay, clamp, kl, floor=0.05, joint=False
):
    """The search of 1.0 (joint: of 1.4) for one fact: the vectors delta on what the ``modules``
    give at the lookup token.

    Returns h_0 of every module, the trajectory: delta (modules, d) before the first and after every
    Adam update, and the last loss. Released code decodes the target and tokenises it again behind
    the prompt, which can shift labels; here tokens are joined.
    """
    target, trajectory, phi, start = target_ids(lm, ask.target), [], 1.0, None
    h_0: list[torch.Tensor] = []
    # [1] every context + prompt + target without its last token, and "{subject} is a"
    rows = [ask.row(lm, context) for context in contexts]
    rows = [(ids + target[:-1], at) for ids, at in rows]
    essence, essence_at = ids_of(lm, ask.subject + " is a"), len(ids_of(lm, ask.subject)) - 1
    deltas = [
        torch.zeros(lm.model.config.hidden_size, dtype=lm.model.dtype, requires_grad=True)
        for _ in modules
    ]  # [3]
    adam = torch.optim.Adam(deltas, lr=lr)
    for step in range(steps):
        nll, hit = [], True
        for ids, at in rows:
            logits, seen = run(
                lm, ids, [(m, at, delta) for m, delta in zip(modules, deltas, strict=True)], modules
            )
            if not h_0:
                h_0 = [seen[m][1][at].detach() for m in modules]  # [5] the bare prompt comes first
            logp = logits[-len(target) :].log_softmax(-1)  # [2] labels: the last |target| positions
            nll.append(-logp[range(len(target)), target].mean())
            hit = hit and logp.argmax(-1).tolist() == target
        logits, _ = run(
            lm, essence, [(m, essence_at, delta) for m, delta in zip(modules, deltas, strict=True)]
        )
        logp = logits[essence_at].log_softmax(-1)
        start = logp.detach() if start is None else start
        divergence = kl * (logp.exp() * (logp - start)).sum()
        shrink = decay * sum(
            delta.norm() / h.norm() ** 2 for delta, h in zip(deltas, h_0, strict=True)
        )
        loss = phi * sum(nll) / len(nll) + divergence + shrink  # [4]
        trajectory.append(torch.stack([delta.detach().clone() for delta in deltas]))
        if (
            floor is not None and loss < floor
        ) or step == steps - 1:  # [6] T forwards, T - 1 updates
            break
        if joint and hit and divergence <= 0.01:  # [1.4, 1]
            break
        phi = 0.1 if joint and hit else 1.0
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for delta, h in zip(deltas, h_0, strict=True):  # [7]
                if clamp is not None and delta.norm() > clamp * h.norm():
                    delta *= clamp * h.norm() / delta.norm()
    return h_0, trajectory, loss.item()


@torch.no_grad()
def key(lm, ask, layer, contexts, grouped=True):
    """What goes into the edited matrix at the lookup token: mean of (bare, mean of the others);
    ROME: plain mean over all contexts.
    """
    keys = []
    for context in contexts:
        ids, at = ask.row(lm, context)
        keys.append(
            run(lm, ids, read=[module(lm, "fc2", layer)])[1][module(lm, "fc2", layer)][0][at]
        )
    if not grouped or len(keys) == 1:
        return sum(keys) / len(keys)
    return (keys[0] + sum(keys[1:]) / len(keys[1:])) / 2


def keys(lm, asks, layer, contexts):
    """K (m, N)."""
    return torch.stack([key(lm, ask, layer, contexts) for ask in asks], 1)


@torch.no_grad()
def now(lm, asks, which):
    """What the module gives at the lookup tokens of the bare prompts, (d, N)."""
    columns = []
    for ask in asks:
        ids, at = ask.row(lm)
        columns.append(run(lm, ids, read=[which])[1][which][1][at])
    return torch.stack(columns, 1)


# ---------------------------------------------------------------------- 1.1 FT


def ft(  # noqa: PLR0913 - the settings of the released code
    lm, edits, layers, *, lr, steps, ball=None, wd=0.0, floor=1e-2, batch_size=64, loss_at="last"
):
    """Adam on the matrices themselves. loss_at "last": every target token is read at the last
    prompt position; "target": teacher forcing.

    Released code picks parameters by name, so that in GPT-J and GPT-2 it also trains the matrix's
    bias; here the matrix only. Returns {layer: dW}, and how many updates each pass over the edits
    made.
    """
    parameters = [module(lm, "fc2", layer).weight for layer in layers]
    made: list[int] = []
    with restored(lm):
        start = {layer: weight(lm, layer).detach().clone() for layer in layers}
        for parameter in parameters:
            parameter.requires_grad_(True)  # [1]
        try:
            adam = torch.optim.Adam(parameters, lr=lr, weight_decay=wd)  # [2]
            for _ in range(steps):
                total, made = 0.0, [*made, 0]
                for first in range(0, len(edits), batch_size):
                    chunk = edits[first : first + batch_size]
                    adam.zero_grad()
                    loss = sum(ft_loss(lm, edit, loss_at) for edit in chunk) / len(chunk)  # [3]
                    if loss >= floor:  # [4]
                        loss.backward()
                        adam.step()
                        made[-1] += 1
                    if ball is not None:
                        with torch.no_grad():
                            for layer, W in start.items():
                                weight(lm, layer).copy_(weight(lm, layer).clamp(W - ball, W + ball))
                    total += loss.item() * len(chunk)
                if total / len(edits) < floor:  # [5]
                    break
            return {layer: weight(lm, layer).detach() - W for layer, W in start.items()}, made
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None


def ft_loss(lm, edit, loss_at):
    """Minus the mean log-probability of the target's tokens."""
    prompt, target = (
        ids_of(lm, edit.prompt.replace("{}", edit.subject)),
        target_ids(lm, edit.target_new),
    )
    if loss_at == "last":
        return -run(lm, prompt)[0][-1].log_softmax(-1)[target].mean()
    return (
        -run(lm, prompt + target[:-1])[0][-len(target) :]
        .log_softmax(-1)[range(len(target)), target]
        .mean()
    )


# ---------------------------------------------------------------------- 1.2 ROME


def rome(lm, edits, layer, C, contexts, **search):
    """One fact after the other on the changing model; C None: without the second moment. Returns dW
    (d, m), all facts together.
    """
    start = weight(lm, layer).detach().clone()
    fc2, mlp = module(lm, "fc2", layer), module(lm, "mlp", layer)
    with restored(lm):
        for edit in edits:  # [5]
            ask = at_subject(edit)
            u = key(lm, ask, layer, contexts, grouped=False)  # [1]
            u = u if C is None else torch.linalg.inv(C) @ u
            u = u / u.norm()
            (h_0,), trajectory, _ = target_vector(lm, ask, [mlp], contexts, **search)  # [2]
            v_star = h_0 + trajectory[-1][0]
            ids, at = ask.row(lm)
            with torch.no_grad():
                k_star, v = (
                    x[at] for x in run(lm, ids, read=[fc2])[1][fc2]
                )  # [3] of the bare prompt
                weight(lm, layer).add_(torch.outer((v_star - v) / (k_star @ u), u))  # [4]
        return (weight(lm, layer) - start).detach().clone()


# -------------------------------------------------------------- 1.3 - 1.5 MEMIT, PMET, AlphaEdit


def spread(lm, asks, layers, Z, which, contexts, share, solve):
    """Write at each of the J layers, in order, a share of what is still missing at the last.
    Returns {layer: dW}; weights stay written.
    """
    written = {}
    for j, layer in enumerate(layers):
        K = keys(lm, asks, layer, contexts)  # a. with the weights edited so far
        R = (Z - now(lm, asks, module(lm, which, layers[-1]))) / share(len(layers) - j)  # b.
        written[layer] = solve(layer, K, R)  # c. d.
        write(lm, {layer: written[layer]})
    return written


def block_targets(lm, asks, layer, contexts, **search):
    """Z (d, N) = h_0 + delta at the output of a block."""
    found = [
        target_vector(lm, ask, [module(lm, "block", layer)], contexts, **search) for ask in asks
    ]
    return torch.stack([h_0 + trajectory[-1][0] for (h_0,), trajectory, _ in found], 1)


def joint_targets(lm, asks, layer, contexts, **search):
    """Z (d, N) = h_0 + delta of the FFN; delta of the attention is searched with it and thrown
    away.
    """
    pair = [module(lm, "attn", layer), module(lm, "fc2", layer)]
    found = [target_vector(lm, ask, pair, contexts, **search) for ask in asks]
    return torch.stack([h_0 + trajectory[-1][1] for (_, h_0), trajectory, _ in found], 1)


def memit(lm, asks, layers, lam, C, contexts, Z=None, **search):
    """Returns {layer: dW}.
    Z: targets searched before. (Released code computes a missing C on the model already edited.)
    """
    Z = block_targets(lm, asks, layers[-1], contexts, **search) if Z is None else Z  # [1]
    with restored(lm):  # [2] [3]
        return spread(
            lm,
            asks,
            layers,
            Z,
            "block",
            contexts,
            lambda left: left,
            lambda layer, K, R: R @ torch.linalg.solve(lam * C[layer] + K @ K.T, K).T,
        )


def pmet(lm, asks, layers, lam, C, contexts, Z=None, **search):
    """Returns {layer: dW}.
    Z: targets searched before. (Released PMET pads on the left and counts positions as if on the
    right.)
    """
    Z = joint_targets(lm, asks, layers[-1], contexts, **search) if Z is None else Z  # [1] [2] [3]
    with restored(lm):  # [4]
        return spread(
            lm,
            asks,
            layers,
            Z,
            "fc2",
            contexts,
            lambda left: left**0.5,
            lambda layer, K, R: R @ K.T @ torch.linalg.inv(K @ K.T + lam * C[layer]),
        )


def alphaedit(lm, batches, layers, l2, threshold, C, contexts, **search):
    """Batch after batch. Returns, for each batch, {layer: dW}, S {layer: sum of K K^T so far} as it
    leaves it, and P.

    Released code keeps S as a process global that outlives the weights it belongs to (and for GPT-J
    never makes it).
    """
    P, S, results = {}, {layer: torch.zeros_like(C[layer]) for layer in layers}, []
    for layer in layers:  # [1]
        U, sizes, _ = torch.linalg.svd(C[layer])
        P[layer] = U[:, sizes < threshold] @ U[:, sizes < threshold].T

    def solve(layer, K, R):  # [3]
        system = P[layer] @ (K @ K.T + S[layer]) + l2 * torch.eye(len(K), dtype=K.dtype)
        return torch.linalg.solve(system, P[layer] @ K @ R.T).T

    with restored(lm):  # [5] within the sequence nothing is restored
        for asks in batches:
            Z = block_targets(lm, asks, layers[-1], contexts, **search)  # [2]
            written = spread(lm, asks, layers, Z, "block", contexts, lambda left: left, solve)
            for layer in layers:  # [4] keys of the model after the edit
                K = keys(lm, asks, layer, contexts)
                S[layer] = S[layer] + K @ K.T
            results.append((written, dict(S), P))
    return results


# ---------------------------------------------------------------------- IFMET, ACE


def ifmet(lm, edits, first_layers, further_layers, lam, C, contexts, **search):
    """First edit: single-hop prompts at the subject; further edit, on the model so edited:
    multi-hop prompts, at their last token.
    """
    hops = [at_last(edit, prompt) for edit in edits for prompt in edit.hops]
    first = pmet(lm, [at_subject(edit) for edit in edits], first_layers, lam, C, contexts, **search)
    with restored(lm):
        write(lm, first)
        return added(first, pmet(lm, hops, further_layers, lam, C, contexts, **search))


def ace(lm, edits, query_layers, value_layers, lam, C, contexts, **search):
    """Algorithm 1, on PMET: all targets first; then the value layers (every prompt's last token),
    then the query layers (the subject's).

    Eq. 11-12: dW = R K^T (lam C + K K^T)^-1, R = V - W K with the weights as they are by then.
    """
    value = [at_last(edit) for edit in edits] + [
        at_last(edit, prompt) for edit in edits for prompt in edit.hops
    ]
    query = [at_subject(edit) for edit in edits]
    V = joint_targets(lm, value, value_layers[-1], contexts, **search)
    Q = joint_targets(lm, query, query_layers[-1], contexts, **search)
    with restored(lm):
        first = pmet(lm, value, value_layers, lam, C, contexts, V)
        write(lm, first)
        return added(first, pmet(lm, query, query_layers, lam, C, contexts, Q))


def added(one, other):
    return {
        layer: sum(part[layer] for part in (one, other) if layer in part)
        for layer in sorted({*one, *other})
    }


# ---------------------------------------------------------------------- 1.6 KN


def kn_attributions(lm, prompt, answer, steps, before_nonlinearity):
    """Integrated gradients of p(answer token) with respect to the neurons at the last position,
    (layers, m), mean over the answer's tokens.

    Released: the activations before the nonlinearity (the gate's output), steps points from 0 to 1
    (one point: 0 alone), the answer without its space, each token after the model's own guesses
    (for GPT-J after nothing). Intended, after the paper: points 1/steps to 1, the answer behind a
    space, each token after those before it; its neurons are those after the nonlinearity.
    """
    ids, answer, total = ids_of(lm, prompt), target_ids(lm, answer), torch.zeros(())
    for t, token in enumerate(answer):
        rows = []
        for layer in range(lm.model.config.num_hidden_layers):
            site = (
                (module(lm, "fc1", layer), "out")
                if before_nonlinearity
                else (module(lm, "fc2", layer), "in")
            )
            seen: dict[str, torch.Tensor] = {}
            with (
                torch.no_grad(),
                replacing(*site, lambda a, seen=seen: seen.setdefault("a", a.clone())),
            ):
                run(lm, ids + answer[:t])
            a, gradient = seen["a"], torch.zeros(())
            for s in range(1, steps + 1):
                scaled = (a * s / steps).requires_grad_(True)
                with replacing(*site, lambda _, scaled=scaled: scaled):
                    p = run(lm, ids + answer[:t])[0][-1].softmax(-1)[token]
                gradient = gradient + torch.autograd.grad(p, scaled)[0]
            rows.append(a / steps * gradient)
        total = total + torch.stack(rows)
    return total / len(answer)


@contextmanager
def replacing(which, side, new):
    """What goes into ("in") or comes out of ("out") a module at the last position becomes ``new``
    of it.
    """

    def at_the_end(h):
        return torch.cat([h[:, :-1], new(h[0, -1])[None, None]], 1)

    hook = (
        which.register_forward_pre_hook(lambda _, args: (at_the_end(args[0]),))
        if side == "in"
        else which.register_forward_hook(lambda _, args, out: at_the_end(out))
    )
    try:
        yield
    finally:
        hook.remove()


def kn(lm, edits, *, threshold, steps, before_nonlinearity):
    """Returns {layer: dW}. (Released code takes the embedding of the model's guess away, not that
    of the old answer.)
    """
    E = lm.model.get_input_embeddings().weight
    written: dict[int, torch.Tensor] = {}
    for edit in edits:
        prompt, old, new = (
            edit.prompt.replace("{}", edit.subject),
            target_ids(lm, edit.target_true),
            target_ids(lm, edit.target_new),
        )
        scores = kn_attributions(lm, prompt, edit.target_true, steps, before_nonlinearity)
        for layer, i in (scores > threshold * scores.max()).nonzero().tolist():  # [3]
            dW = written.setdefault(layer, torch.zeros_like(weight(lm, layer)))
            dW[:, i] += E[new].sum(0) - E[old].sum(0) * (2 if len(old) == 1 else 1)  # [4]
    return dict(sorted(written.items()))
