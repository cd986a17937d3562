"""What published tables call users, items and splits: of the names that more than one kind of data is read by."""

USER_COLUMNS = ("user", "user_id", "userid", "uid", "u", "reviewerid", "reviewer_id", "visitorid")
ITEM_COLUMNS = (
    *("item", "item_id", "itemid", "iid", "i", "movieid", "movie_id", "asin", "parent_asin", "product_id"),
    "business_id",
)
SPLIT_COLUMNS = ("split", "fold", "set", "subset")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val"),
    "test": ("test", "testing"),
}
SPLIT_OF = {spelling: split for split, spellings in SPLIT_NAMES.items() for spelling in spellings}
"""Of each spelling."""
