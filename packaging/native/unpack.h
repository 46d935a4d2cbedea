/* The payload of the executable: archives in zstd frames, one after the other, written as a tree or compared with one. */
#ifndef BIRUDA_UNPACK_H
#define BIRUDA_UNPACK_H

#include <stddef.h>

/* Both return NULL, else a sentence's end that says what failed; errno says why where that is not 0. */
const char *unpack_tree(const unsigned char *payload, size_t bytes, int directory_fd);

/* "" when the tree differs from the payload. */
const char *compare_tree(const unsigned char *payload, size_t bytes, int directory_fd);

#endif
