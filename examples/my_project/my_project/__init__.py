"""A loss, a data source and a callback of one's own, beside an installed lightning_distill."""
