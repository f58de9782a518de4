from sslkit_vintage.method import Plain as _Plain


class Plain(_Plain):
    """Its author had passed everything on."""

    def objective(self, *args, **kwargs):
        return super().objective(*args, **kwargs)
