"""The columns that a table of classes may have, by the name of their values in ``details["classes"]["rows"]``."""

CLASS_COLUMNS = {
    "count": "samples", "class_var": "variance", "mean_norm": "mean norm", "row_cosine": "cos with its row",
    "held_out": "held-out samples", "hit": "hit rate", "agree": "agreement",
}  # fmt: skip
