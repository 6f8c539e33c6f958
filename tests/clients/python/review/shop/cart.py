"""A shopping cart."""

from shop.prices import price_of


class Cart:
    def __init__(self):
        self.counts = {}

    def add(self, name, count=1):
        self.counts[name] = self.counts.get(name, 0) + count

    def total(self):
        return sum(price_of(name) * count for name, count in self.counts.items())

    def average(self):
        return self.total() / len(self.counts)
