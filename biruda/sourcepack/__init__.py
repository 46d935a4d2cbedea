"""A source tree as one content-addressed file: packed once, sent incrementally, unpacked safely.

    tree.py      what belongs to the tree      ignore.py, gitindex.py   the rules that decide it
    pack.py      tree -> tar bytes or a Plan   statcache.py             what need not be read again
    recipe.py    what a pack consists of       tarformat.py             the tar bytes that follow from it
    wire.py      recipe and chunks as streams  packstore.py             the packs that a daemon holds
    unpack.py    tar bytes -> files            names.py, entry.py       words that all of them share

Nothing is imported here: the worker needs unpack.py alone. See docs/source-packs.md.
"""
