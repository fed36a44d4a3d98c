"""once: every item is worked on once, whatever the company that it is asked for in."""

from acelib.measures.once import Once


def test_an_item_is_worked_on_once_and_results_come_in_order():
    calls = []

    def double(items):
        calls.append(list(items))
        return [2 * item for item in items]

    once = Once(double)
    assert once([3, 1, 3]) == [6, 2, 6]
    assert once(iter((1, 2))) == [2, 4]
    assert once([2, 3]) == [4, 6]
    assert calls == [[3, 1], [2]]
