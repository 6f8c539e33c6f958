"""What things cost, in cents."""

PRICES = {"apple": 30, "bread": 250, "milk": 120}


def price_of(name):
    return PRICES.get(name)
