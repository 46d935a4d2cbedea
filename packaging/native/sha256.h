/* What sha256.c has for biruda_module.c. */
#ifndef BIRUDA_SHA256_H
#define BIRUDA_SHA256_H

#include <stddef.h>
#include <stdint.h>

/* Whether sha256_blocks() works on this processor. */
int sha256_is_here(void);

/* Take so many blocks of 64 bytes into the state. */
void sha256_blocks(uint32_t state[8], const uint8_t *data, size_t count);

#endif
