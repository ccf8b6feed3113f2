"""Falsified captions of the synthetic news: never true of their image, and as similar to a true one as is asked for."""

from promptmeup.corpora.synthetic_news import News, annotations, write_news
from promptmeup.corpora.synthetic_world import create_world


def _told_of_falsified(news: list[News], candidates: int) -> float:
    """Return how much of what falsified captions tell their images show, the mean."""
    by_id = {item.first_id + n: (item, caption) for item in news for n, caption in enumerate(item.captions)}
    shares = []
    for pair in annotations(news, seed=0, falsified=True, candidates=candidates):
        caption, image = by_id[pair["id"]][1], by_id[pair["image_id"]][0]
        assert pair["falsified"] is not (caption.names <= image.shown)
        if pair["falsified"]:
            shares.append(len(caption.names & image.shown) / len(caption.names))
    return sum(shares) / len(shares)


def test_more_candidates_are_harder_to_tell_from_true_ones() -> None:
    world = create_world(0, num_people=10, num_organisations=5, num_places=4, num_events=4)
    news = list(write_news(world, seed=0, num_train=150, num_val=0, captions_per_image=2))
    shares = [_told_of_falsified(news, candidates) for candidates in (1, 4, 32)]
    assert shares[0] + 0.15 < shares[1] < shares[2] - 0.05
