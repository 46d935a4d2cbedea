/* What the jobs of the soak run: known pseudo-random bytes, printed or written to a file.

   noise out SEED BYTES CHUNK PAUSE_US    print them, in chunks that take turns on stdout and stderr
   noise file SEED BYTES PATH             write them; on a full disk wait until there is room
   noise linger                           leave a child behind that will not hear of SIGTERM */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t state;
static unsigned char held[8];
static int left;

static unsigned char next_byte(void) {
    if (!left) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        uint64_t word = state * 2685821657736338717ull;
        for (int i = 0; i < 8; i++)
            held[i] = (unsigned char)(word >> (8 * i));
        left = 8;
    }
    return held[8 - left--];
}

static void put(int fd, const unsigned char *data, size_t size) {
    while (size) {
        ssize_t wrote = write(fd, data, size);
        if (wrote < 0) {
            if (errno == ENOSPC || errno == EINTR || errno == EDQUOT) {
                usleep(50000);
                continue;
            }
            exit(99);
        }
        data += wrote;
        size -= (size_t)wrote;
    }
}

/* That this attempt ran here, in a file that all of them share: one line, one write. */
static void witness(const char *what) {
    const char *path = getenv("WITNESS"), *job = getenv("BIRUDA_JOB"), *attempt = getenv("BIRUDA_ATTEMPT");
    if (!path || !job || !attempt)
        return;
    int fd = open(path, O_WRONLY | O_APPEND);
    if (fd < 0)
        exit(98);
    char line[100];
    int size = snprintf(line, sizeof line, "%s %s %s\n", what, job, attempt);
    if (write(fd, line, (size_t)size) != size)
        exit(97);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "linger")) {
        if (fork() == 0) {
            setsid();
            signal(SIGTERM, SIG_IGN);
            signal(SIGHUP, SIG_IGN);
            sleep(1000);
        }
        return 0;
    }
    if (argc < 5)
        return 96;
    state = strtoull(argv[2], NULL, 10);
    long total = atol(argv[3]);
    static unsigned char piece[1 << 16];
    int to_file = !strcmp(argv[1], "file");
    int fd = 1;
    long chunk = sizeof piece;
    useconds_t pause = 0;
    if (to_file) {
        while ((fd = open(argv[4], O_WRONLY | O_CREAT | O_TRUNC, 0644)) < 0) {
            if (errno != ENOSPC)
                return 95;
            usleep(50000);
        }
    } else {
        chunk = atol(argv[4]);
        pause = (useconds_t)atol(argv[5]);
        witness("begin");
    }
    for (long done = 0, turn = 0; done < total; turn++) {
        long size = total - done < chunk ? total - done : chunk;
        for (long i = 0; i < size; i++)
            piece[i] = next_byte();
        put(to_file ? fd : 1 + (int)(turn & 1), piece, (size_t)size);
        done += size;
        if (pause)
            usleep(pause);
    }
    if (!to_file)
        witness("end");
    return 0;
}
