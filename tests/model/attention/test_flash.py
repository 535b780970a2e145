"""Variable-length kernels over both layouts. Fakes with the packages' own signatures compute with SDPA what the
packages would: so the calls, the way of padding out and in, and the numbers are checked; real ones are on a GPU.
"""

import inspect
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen as torch_varlen
from torch.nn.functional import scaled_dot_product_attention

import xlmr_ray
from xlmr_ray.errors import UserError
from xlmr_ray.model.attention import backends, varlen
from xlmr_ray.model.attention.backends import ATTENTION, attention, best_packed
from xlmr_ray.model.layout import Packed, Padded

TINY = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
VARLEN = inspect.signature(torch_varlen.varlen_attn)


def compute(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal):
    """What the kernels promise: rows of their own lengths, causality counted from the last key, zeros where there is
    nothing to see. Holds the caller to what they demand.
    """
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.shape[-1] % 8 == 0
    assert q.shape[-1] <= 256
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    assert type(max_q) is type(max_k) is int
    assert (int(cu_q[-1]), int(cu_k[-1])) == (len(q), len(k))
    parts = []
    for row in range(len(cu_q) - 1):
        one_q, one_k, one_v = q[cu_q[row] : cu_q[row + 1]], k[cu_k[row] : cu_k[row + 1]], v[cu_k[row] : cu_k[row + 1]]
        assert len(one_q) <= max_q
        assert len(one_k) <= max_k
        seen = torch.ones(len(one_q), len(one_k), dtype=torch.bool)
        if causal:
            seen = seen.tril(len(one_k) - len(one_q))
        heads = (x.transpose(0, 1).float() for x in (one_q, one_k, one_v))
        out = scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale).transpose(0, 1)
        parts.append(torch.where(seen.any(1)[:, None, None], out, 0.0))
    return torch.cat(parts).to(q.dtype)


def flash_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    out = compute(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)
    return torch.nn.functional.dropout(
        out, dropout_p
    )  # not where the real one drops: enough to see that it is passed on


def flash_3(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    num_splits=1,
    return_attn_probs=False,
):
    return compute(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)


def flash_4(
    q,
    k,
    v,
    qv=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    min_seqlen_k=None,
    softmax_scale=None,
    causal=False,
    return_lse=False,
):
    assert qv is None
    out = compute(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)
    return out, torch.zeros(q.shape[1], len(q))


def of_torch(*args, **kwargs):
    given_args = VARLEN.bind(*args, **kwargs)
    given_args.apply_defaults()
    q, k, v, cu_q, cu_k, max_q, max_k = given_args.args
    options = given_args.kwargs
    causal = options["window_size"] == (-1, 0)
    assert causal or options["window_size"] == (-1, -1)
    return compute(q, k, v, cu_q, cu_k, max_q, max_k, options["scale"], causal)


of_torch.__signature__ = VARLEN

FUNCTIONS = {
    "flash_attn": flash_2,
    "flash_attn_interface": flash_3,
    "fa3_fwd_interface": flash_3,
    "flash_attn.cute": flash_4,
}
NAMES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
NAMES |= {"flash_attention_4": "flash_attn.cute", "varlen": ""}


def install(monkeypatch, *modules: str) -> None:
    """Makes these modules, and none other of the packages, the ones to import."""
    for module in FUNCTIONS:
        monkeypatch.setitem(sys.modules, module, None)
    for module in modules:
        fake = types.ModuleType(module)
        fake.flash_attn_varlen_func = FUNCTIONS[module]
        monkeypatch.setitem(sys.modules, module, fake)
        if "." in module and sys.modules[module.partition(".")[0]] is None:
            monkeypatch.setitem(sys.modules, module.partition(".")[0], types.ModuleType(module.partition(".")[0]))


@pytest.fixture
def on_cpu(monkeypatch):
    """The fakes do not mind the CPU."""
    monkeypatch.setattr(varlen, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(torch_varlen, "varlen_attn", of_torch)
    for cached in (varlen.check_tensors, best_packed):
        cached.cache_clear()
    yield
    for cached in (varlen.check_tensors, best_packed):
        cached.cache_clear()


@pytest.fixture
def every_package(on_cpu, monkeypatch):
    install(monkeypatch, "flash_attn", "flash_attn_interface", "flash_attn.cute")


def tensors(shape, keys=None, heads=2, head_dim=8, seed=0, dtype=torch.float16):
    """Queries, keys and values as a fused product gives them: views that are not contiguous."""
    generator = torch.Generator().manual_seed(seed)
    keys = shape if keys is None else keys
    most = (*shape[:-1], max(shape[-1], keys[-1]))
    q, k, v = torch.randn(*most, 3, heads, head_dim, generator=generator).to(dtype).unbind(-3)
    return q[..., : shape[-1], :, :], k[..., : keys[-1], :, :], v[..., : keys[-1], :, :]


def same(got, wanted, atol=2e-3):
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, atol=atol, rtol=atol)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [8, 13, 64])
def test_packed_sequences(name, causal, head_dim, every_package):
    lengths = [5, 1, 7, 7, 2]
    q, k, v = tensors((sum(lengths),), head_dim=head_dim)
    layout = Packed.of(lengths, causal=causal)
    got, probs = attention(name)(q, k, v, layout, 0.0)
    assert probs is None
    same(got, ATTENTION["eager"](q, k, v, layout, 0.0)[0])


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(NAMES)),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    past=st.integers(0, 3),
    left=st.booleans(),
    causal=st.booleans(),
    full=st.booleans(),
    seed=st.integers(0, 99),
)
def test_padded_sequences(name, lengths, past, left, causal, full, seed):
    with pytest.MonkeyPatch.context() as patch:
        install(patch, "flash_attn", "flash_attn_interface", "flash_attn.cute")
        patch.setattr(varlen, "DEVICES", ("cpu",))
        patch.setattr(torch_varlen, "varlen_attn", of_torch)
        varlen.check_tensors.cache_clear()
        queries, keys = max(lengths), max(lengths) + past
        q, k, v = tensors((len(lengths), queries), (len(lengths), keys), seed=seed)
        places = torch.arange(keys)
        ends = torch.tensor(lengths)[:, None] + past
        mask = places >= keys - ends if left else places < ends
        layout = Padded(None if full else mask[:, None, None, :], causal)
        got = attention(name)(q, k, v, layout, 0.0)[0]
        wanted = ATTENTION["eager"](q, k, v, layout, 0.0)[0]
        real = mask[:, past:] if causal and not full else torch.ones_like(mask[:, past:])
        same(got[real], wanted[real])
        assert not got[~real].any()
    varlen.check_tensors.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_cross_attention_keeps_every_query(name, every_package):
    q, k, v = tensors((2, 4), (2, 4))
    layout = Padded(torch.tensor([[1, 1, 1, 0], [0, 0, 1, 0]]).bool()[:, None, None])
    same(attention(name)(q, k, v, layout, 0.0)[0], ATTENTION["eager"](q, k, v, layout, 0.0)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_go_through_the_padding(causal, every_package):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    layout = Padded(mask[:, None, None], causal)
    results = []
    for name in ("flash_attention_2", "eager"):
        leaves = [x.clone().requires_grad_() for x in tensors((2, 4), head_dim=13)]
        attention(name)(*leaves, layout, 0.0)[0][mask].float().sum().backward()
        results.append([x.grad for x in leaves])
    for got, wanted in zip(*results, strict=True):
        same(got, wanted)


@pytest.mark.parametrize("name", ["flash_attention_2", "varlen", "auto"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("decoder", [False, True])
def test_a_whole_model(name, side, decoder, every_package, monkeypatch):
    config = xlmr_ray.XLMRobertaConfig(
        vocab_size=50, hidden_size=16, num_attention_heads=2, num_hidden_layers=3, intermediate_size=16
    )
    config.is_decoder, config.initializer_range = decoder, 0.3
    torch.manual_seed(0)
    model = xlmr_ray.XLMRobertaModel(config).eval().half()
    ids = torch.randint(5, 50, (2, 6))
    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3 if side == "left" else [1] * 3 + [0] * 3])
    ids[mask == 0] = config.pad_token_id
    unpadded = []
    monkeypatch.setattr(varlen, "unpad", lambda *args, unpad=varlen.unpad: unpadded.append(args) or unpad(*args))
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).last_hidden_state
        model.set_attn_implementation(name)
        got = model(ids, attention_mask=mask).last_hidden_state
        same(got[mask.bool()], wanted[mask.bool()], atol=1e-2)
        assert len(unpadded) == (0 if name == "auto" else 1)  # for three layers

        layout = Packed.of([6, 3], causal=decoder)
        packed = model.embeddings(ids[mask.bool()], torch.tensor([*range(2, 8), *range(2, 5)]))
        same(model.encoder(packed, layout), wanted[mask.bool()], atol=1e-2)
        if decoder and name != "auto":
            step = model(ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
            positions = (mask.cumsum(1) * mask + config.pad_token_id)[:, 4:]
            rest = model(ids[:, 4:], mask, position_ids=positions, past_key_values=step.past_key_values)
            same(rest.last_hidden_state[mask[:, 4:].bool()], wanted[:, 4:][mask[:, 4:].bool()], atol=1e-2)


def test_what_the_kernels_cannot_do_is_refused_in_one_line(on_cpu, monkeypatch):
    install(monkeypatch, "flash_attn", "fa3_fwd_interface")
    flash, forward_only, torchs_own = (attention(name) for name in ("flash_attention_2", "flash_attention_3", "varlen"))
    q, k, v = tensors((2, 4))
    for mask in (torch.ones(2, 1, 4, 4).bool(), torch.zeros(2, 1, 1, 4), torch.ones(2, 2, 1, 4).bool()):
        with pytest.raises(
            UserError, match=r"flash_attention_2: got an attention_mask of .*expected \(batch, length\).*sdpa$"
        ):
            flash(q, k, v, Padded(mask), 0.0)
    with pytest.raises(UserError, match="got heads of 264 numbers, expected at most 256; use attn_implementation sdpa"):
        flash(*tensors((2, 4), head_dim=264), Padded(), 0.0)
    assert flash(q, k, v, Padded(), 0.9)[0].eq(0).float().mean() > 0.5
    with pytest.raises(UserError, match=r"varlen has no dropout, attention_probs_dropout_prob is 0\.1"):
        torchs_own(q, k, v, Padded(), 0.1)
    with pytest.raises(UserError, match=r"flash_attention_3: got float16 on .*, expected bfloat16 on a GPU"):
        forward_only(q, k, v, Padded(), 0.0)
    q, k, v = tensors((2, 4), dtype=torch.bfloat16)
    forward_only(q, k, v, Padded(), 0.0)
    with pytest.raises(UserError, match="flash_attention_3: the package installed computes no gradients"):
        forward_only(q.clone().requires_grad_(), k, v, Padded(), 0.0)


def test_tensors_on_the_cpu_are_refused_in_one_line(monkeypatch):
    install(monkeypatch, "flash_attn")
    for name, dtype in (("flash_attention_2", "float32"), ("varlen", "float16")):
        model = xlmr_ray.XLMRobertaModel(xlmr_ray.XLMRobertaConfig(**TINY)).to(getattr(torch, dtype))
        model.set_attn_implementation(name)
        message = f"^{name}: got {dtype} on cpu, expected float16 or bfloat16 on a GPU; use attn_implementation sdpa$"
        with pytest.raises(UserError, match=message):
            model.eval()(torch.tensor([[5]]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash_attention_2", r"needs the package flash-attn: pip install 'xlmr-ray\[flash\]'"),
        ("flash_attention_3", "needs the package fa3-fwd: pip install fa3-fwd"),
        ("flash_attention_4", "needs the package flash-attn-4: pip install --pre flash-attn-4"),
    ],
)
def test_a_package_that_is_not_there_is_named(name, message, monkeypatch):
    install(monkeypatch)
    with pytest.raises(UserError, match=f"^attn_implementation {name} {message}") as error:
        xlmr_ray.XLMRobertaModel(xlmr_ray.XLMRobertaConfig(**TINY, attn_implementation=name))
    assert "\n" not in str(error.value)


def test_version_4_alone_is_not_version_2(monkeypatch):
    install(monkeypatch, "flash_attn.cute")
    attention("flash_attention_4")
    with pytest.raises(UserError, match="needs the package flash-attn:"):
        attention("flash_attention_2")


def test_a_torch_without_the_kernel_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(UserError, match=r"varlen needs torch 2\.10 or newer, there is "):
        attention("varlen")


def test_auto_is_the_fastest_there_is(on_cpu, monkeypatch):
    device = torch.device("cpu")
    install(monkeypatch, "flash_attn")
    assert best_packed(device, torch.bfloat16, 64)[0] == "flash_attention_2"
    assert best_packed(device, torch.float32, 64)[0] == "sdpa"
    assert best_packed(device, torch.bfloat16, 512)[0] == "sdpa"
    install(monkeypatch)
    best_packed.cache_clear()
    assert best_packed(device, torch.float16, 64)[0] == "varlen"
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    best_packed.cache_clear()
    assert best_packed(device, torch.float16, 64)[0] == "sdpa"


def test_auto_is_version_3_on_hopper_in_bfloat16(on_cpu, monkeypatch):
    device = torch.device("cpu")
    install(monkeypatch, "flash_attn", "fa3_fwd_interface")
    assert best_packed(device, torch.bfloat16, 64)[0] == "flash_attention_2"
    best_packed.cache_clear()
    monkeypatch.setattr(backends, "on_hopper", lambda device: True)
    assert best_packed(device, torch.bfloat16, 64)[0] == "flash_attention_3"
    assert best_packed(device, torch.float16, 64)[0] == "flash_attention_2"
    install(monkeypatch)
    best_packed.cache_clear()
    assert best_packed(device, torch.bfloat16, 64)[0] == "varlen"


def test_auto_on_the_cpu_is_sdpa_to_the_bit():
    q, k, v = tensors((9,), dtype=torch.float32)
    layout = Packed.of([4, 5])
    assert best_packed(q.device, q.dtype, 8)[0] == "sdpa"
    assert torch.equal(attention("auto")(q, k, v, layout, 0.0)[0], ATTENTION["sdpa"](q, k, v, layout, 0.0)[0])


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(UserError, match="there are: eager, sdpa, auto, varlen, flash_attention_2, flash_attention_3"):
        attention("flash_attention_9")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_the_real_kernels_on_a_gpu(name, dtype, causal):
    try:
        attend = attention(name)
    except UserError as error:
        pytest.skip(str(error))
    lengths = [37, 1, 300]
    for head_dim in (32, 60, 64):
        q, k, v = (x.cuda() for x in tensors((sum(lengths),), head_dim=head_dim, dtype=dtype))
        layout = Packed.of(lengths, "cuda", causal=causal)
        try:
            got = attend(q, k, v, layout, 0.0)[0]
        except UserError as error:
            pytest.skip(str(error))
        same(got, ATTENTION["eager"](q, k, v, layout, 0.0)[0], atol=4e-2)
        alone = attend(*(x[38:] for x in (q, k, v)), Packed.of([300], "cuda", causal=causal), 0.0)[0]
        assert torch.equal(alone, got[38:])  # whatever else is in the batch
        q, k, v = (x.cuda() for x in tensors((3, 50), head_dim=head_dim, dtype=dtype))
        mask = (torch.arange(50) < torch.tensor([50, 3, 31])[:, None]).cuda()
        padded = Padded(mask[:, None, None], causal)
        got, wanted = attend(q, k, v, padded, 0.0)[0], ATTENTION["eager"](q, k, v, padded, 0.0)[0]
        same(got[mask], wanted[mask], atol=4e-2)
