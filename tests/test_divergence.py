"""TopKLD's divergence: what it is at both ends of K, where it is 0, its gradients, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.divergence import KINDS, TopK


def pair(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (3, 5, 11) of a student and a teacher."""
    generator = torch.Generator().manual_seed(0)
    return tuple((scale * torch.randn(3, 5, 11, generator=generator)).double().log_softmax(-1) for _ in range(2))  # type: ignore[return-value]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def test_all_and_none_of_the_classes_are_the_divergences():
    q, p = pair()
    for head, tail in (("forward", "reverse"), ("reverse", "forward")):
        whole = {"forward": kl(p, q), "reverse": kl(q, p)}
        torch.testing.assert_close(TopK(top_k=11, head=head, tail=tail)(q, p), whole[head])
        torch.testing.assert_close(TopK(top_k=99, head=head, tail=tail)(q, p), whole[head])
        torch.testing.assert_close(TopK(top_k=0, head=head, tail=tail)(q, p), whole[tail])
    torch.testing.assert_close(TopK(top_k=4, tail="forward")(q, p), kl(p, q))


@pytest.mark.parametrize("top_k", [0, 1, 4, 11])
def test_both_parts_make_up_the_divergence(top_k):
    """KL = KL of the two masses + each mass times the KL within it."""
    q, p = pair()
    inside = torch.zeros_like(p).scatter(-1, p.topk(top_k).indices, 1.0).bool()
    expected = torch.zeros(3, 5).double()
    for part in (inside, ~inside):
        mass = [torch.where(part, t.exp(), 0.0).sum(-1) for t in (p, q)]
        if part.any():
            within = [torch.where(part, t, -torch.inf).log_softmax(-1) for t in (p, q)]
            terms = within[0].exp() * (within[0] - within[1]).masked_fill(~part, 0.0)
            expected += mass[0] * (mass[0] / mass[1]).log() + mass[0] * terms.sum(-1)
    torch.testing.assert_close(TopK(top_k=top_k, tail="forward")(q, p), expected)


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("tail", KINDS)
def test_it_is_least_at_the_teacher_for_every_k(head, tail):
    """Its value there is 0 and so is its gradient by logits; elsewhere it is above, in every single row."""
    q, p = pair()
    for top_k in (0, 3, 11):
        divergence = TopK(top_k=top_k, head=head, tail=tail, tail_weight=0.5)
        logits = (p + 3.0).requires_grad_()
        at = divergence(logits.log_softmax(-1), p)
        (gradient,) = torch.autograd.grad(at.sum(), logits)
        assert at.abs().max() < 1e-14 and gradient.abs().max() < 1e-14
        assert (divergence(q, p) > 1e-3).all()


def test_the_head_is_the_teachers_and_no_gradient_goes_there():
    q, p = pair()
    student, teacher = q.clone().requires_grad_(), p.clone().requires_grad_()
    TopK(top_k=3)(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad is not None and student.grad.any()
    alone = TopK(top_k=3, tail_weight=0.0)(q, p)
    best = p.topk(3).indices
    terms = (p.exp() * (p - q) - p.exp() + q.exp()).gather(-1, best)
    torch.testing.assert_close(alone, terms.sum(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k and tail_weight must be at least 0, got top_k -1"),
        ({"tail_weight": -0.5}, "must be at least 0, got top_k 16 and tail_weight -0.5"),
        ({"head": "both"}, r"head must be one of \['forward', 'reverse'\], got 'both'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TopK(**options)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_teacher_rules_out_adds_what_the_student_says(kind):
    """Whatever the student's logits are, -inf as well."""
    q, p = torch.tensor([0.5, 0.25, 0.25, 0.0]), torch.tensor([0.75, 0.25, 0.0, 0.0])
    student, divergence = q.log().requires_grad_(), TopK(top_k=1, head=kind, tail=kind)
    found = divergence(student, p.log())
    terms = {"forward": p * (p / q).log() - p + q, "reverse": q * (q / p).log() - q + p}[kind]
    torch.testing.assert_close(found, terms[:2].sum() + 0.25)
    assert torch.autograd.grad(found, student)[0].isfinite().all()
