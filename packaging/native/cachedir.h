/* Where the executable's files are kept: a directory that nobody else can write to, one for each content. */
#ifndef BIRUDA_CACHEDIR_H
#define BIRUDA_CACHEDIR_H

#include <limits.h>
#include <stddef.h>

struct tree {
    const unsigned char *data; /* the payload */
    size_t bytes;
    const char *key;    /* names its content */
    const char *origin; /* the executable it is in */
};

/* NULL, and the path of the whole tree in directory; else what is wrong, with errno, and where in directory. */
const char *cached_tree(const struct tree *tree, char directory[PATH_MAX]);

#endif
