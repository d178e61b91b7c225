def require_drawable(p):
    pass


def draw(p, r):
    pass
