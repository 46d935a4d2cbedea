/* A tree is made under another name and renamed when it is whole, so whoever finds it finds all of it. It was not
 * synced: the first start after each boot compares it with the executable, for a power cut may have emptied files. */
#define _GNU_SOURCE
#include "cachedir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "unpack.h"

enum { BOOT_ID_BYTES = 36 };

#define BOOT_MARK ".boot" /* the boot in which the tree was made or compared */
#define ORIGIN "origin"   /* a link to the executable, for who copies it to another host */

static const char NO_PLACE[] = "there is no directory for its files that is this user's own, writable and not mounted noexec";

/* --- which directory --------------------------------------------------------------------------------------------- */

static bool make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0755) != 0 && errno != EEXIST && errno != EROFS && errno != EACCES)
            return *slash = '/', false;
        *slash = '/';
    }
    return true;
}

/* A descriptor of the directory, made 0700 where it is not there; -1 where it cannot be used, why in *problem. */
static int open_place(const char *path, const char **problem)
{
    char parents[PATH_MAX];
    struct statvfs mounted;
    struct stat status;
    int fd;

    *problem = "cannot be made or opened as the directory of its files";
    snprintf(parents, sizeof parents, "%s", path);
    if (!make_parents(parents) || (mkdir(path, 0700) != 0 && errno != EEXIST))
        return -1;
    if ((fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)) < 0)
        return -1;
    *problem = "is not this user's own directory with mode 0700";
    errno = 0;
    if (fstat(fd, &status) == 0 && status.st_uid == geteuid() && (status.st_mode & 0777) == 0700) {
        *problem = "is mounted noexec";
        if (fstatvfs(fd, &mounted) == 0 && (mounted.f_flag & ST_NOEXEC) == 0) {
            *problem = "cannot be written to";
            if (faccessat(fd, ".", W_OK, AT_EACCESS) == 0)
                return fd;
        }
    }
    close(fd);
    return -1;
}

/* The next place that is tried, from 0 on; false after the last. An empty one is left out. */
static bool candidate(int number, char path[PATH_MAX])
{
    static const char *const FOR_ALL[] = {"/var/tmp", "/tmp", "/dev/shm", "/run"};
    const char *home = getenv("HOME"), *cache = getenv("XDG_CACHE_HOME");
    bool is_root = geteuid() == 0;

    path[0] = 0;
    if (number == 0 && is_root)
        snprintf(path, PATH_MAX, "/var/cache/biruda");
    else if (number == 1 && !is_root && cache != NULL && cache[0] == '/')
        snprintf(path, PATH_MAX, "%s/biruda", cache);
    else if (number == 2 && !is_root && home != NULL && home[0] == '/')
        snprintf(path, PATH_MAX, "%s/.cache/biruda", home);
    else if (number >= 3 && number < 7)
        snprintf(path, PATH_MAX, "%s/biruda-%u", FOR_ALL[number - 3], (unsigned)geteuid());
    return number < 7;
}

static int find_place(char path[PATH_MAX], const char **problem)
{
    const char *named = getenv("BIRUDA_CACHE");
    int fd;

    if (named != NULL && named[0] == '/') {
        snprintf(path, PATH_MAX, "%s", named);
        return open_place(path, problem);
    }
    for (int number = 0; candidate(number, path); number++)
        if (path[0] != 0 && (fd = open_place(path, problem)) >= 0)
            return fd;
    path[0] = 0;
    errno = 0;
    *problem = NO_PLACE;
    return -1;
}

/* --- one tree in it ---------------------------------------------------------------------------------------------- */

static void read_boot_id(char id[BOOT_ID_BYTES + 1])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t bytes = fd >= 0 ? read(fd, id, BOOT_ID_BYTES) : 0;

    id[bytes > 0 ? bytes : 0] = 0;
    if (fd >= 0)
        close(fd);
}

static bool is_of_this_boot(int tree_fd)
{
    char now[BOOT_ID_BYTES + 1], then[BOOT_ID_BYTES + 1] = {0};
    int fd = openat(tree_fd, BOOT_MARK, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t bytes = fd >= 0 ? read(fd, then, BOOT_ID_BYTES) : -1;

    if (fd >= 0)
        close(fd);
    read_boot_id(now);
    return bytes >= 0 && strcmp(now, then) == 0;
}

static bool mark_boot(int tree_fd)
{
    char now[BOOT_ID_BYTES + 1];
    int fd = openat(tree_fd, BOOT_MARK, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool done;

    if (fd < 0)
        return false;
    read_boot_id(now);
    done = write(fd, now, strlen(now)) == (ssize_t)strlen(now);
    return close(fd) == 0 && done;
}

static void remember_origin(int tree_fd, const char *origin)
{
    char there[PATH_MAX], fresh[32];
    ssize_t bytes = readlinkat(tree_fd, ORIGIN, there, sizeof there);

    if (bytes == (ssize_t)strlen(origin) && memcmp(there, origin, (size_t)bytes) == 0)
        return;
    snprintf(fresh, sizeof fresh, ".origin-%ld", (long)getpid());
    if (symlinkat(origin, tree_fd, fresh) == 0 && renameat(tree_fd, fresh, tree_fd, ORIGIN) != 0)
        unlinkat(tree_fd, fresh, 0);
}

static int open_tree(int place_fd, const char *name)
{
    return openat(place_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void remove_tree(int directory_fd, const char *name)
{
    int fd = open_tree(directory_fd, name);
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;

    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0
            && unlinkat(fd, entry->d_name, 0) != 0)
            remove_tree(fd, entry->d_name);
    if (directory != NULL)
        closedir(directory);
    unlinkat(directory_fd, name, AT_REMOVEDIR);
}

/* Makes the tree whole under its name; what stood there and was not goes. */
static const char *make_tree(const struct tree *tree, int place_fd)
{
    char fresh[64], worn[64];
    const char *problem = "its files cannot be unpacked there";
    int fd;

    snprintf(fresh, sizeof fresh, ".making-%ld", (long)getpid());
    snprintf(worn, sizeof worn, ".worn-%ld", (long)getpid());
    remove_tree(place_fd, fresh); /* of a process that had our number and was killed */
    if (mkdirat(place_fd, fresh, 0700) != 0 || (fd = open_tree(place_fd, fresh)) < 0)
        return problem;
    problem = unpack_tree(tree->data, tree->bytes, fd);
    if (problem == NULL && !mark_boot(fd))
        problem = "a file of it cannot be written";
    close(fd);
    if (problem == NULL) {
        renameat(place_fd, tree->key, place_fd, worn);
        if (renameat(place_fd, fresh, place_fd, tree->key) == 0) {
            remove_tree(place_fd, worn);
            return NULL;
        }
        problem = "its files cannot be given their name";
    }
    int why = errno;
    remove_tree(place_fd, fresh);
    errno = why;
    return problem;
}

/* The tree is not there or was not yet looked at since the boot. Only one process at a time does that. */
static const char *settle(const struct tree *tree, int place_fd)
{
    const char *problem = NULL;
    int fd, lock = openat(place_fd, ".lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);

    if (lock < 0 || flock(lock, LOCK_EX) != 0)
        return "its lock cannot be taken";
    fd = open_tree(place_fd, tree->key);
    if (fd < 0 || !is_of_this_boot(fd)) {
        if (fd >= 0 && compare_tree(tree->data, tree->bytes, fd) == NULL)
            mark_boot(fd); /* where that fails it is compared again next time */
        else
            problem = make_tree(tree, place_fd);
    }
    if (fd >= 0)
        close(fd);
    int why = errno;
    close(lock);
    errno = why;
    return problem;
}

const char *cached_tree(const struct tree *tree, char directory[PATH_MAX])
{
    char place[PATH_MAX];
    const char *problem = NULL;
    int place_fd = find_place(place, &problem), fd;

    snprintf(directory, PATH_MAX, "%s", place);
    if (place_fd < 0)
        return problem;
    fd = open_tree(place_fd, tree->key);
    if (fd < 0 || !is_of_this_boot(fd)) {
        if (fd >= 0)
            close(fd);
        if ((problem = settle(tree, place_fd)) != NULL)
            return problem;
        fd = open_tree(place_fd, tree->key);
    }
    if (fd < 0)
        return "its files are gone again";
    remember_origin(fd, tree->origin);
    futimens(fd, NULL); /* who tidies up sees that it is used */
    close(fd);
    close(place_fd);
    if (snprintf(directory, PATH_MAX, "%s/%s", place, tree->key) >= PATH_MAX)
        return errno = ENAMETOOLONG, "its directory cannot be used";
    errno = 0;
    return NULL;
}
