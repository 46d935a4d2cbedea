/* _biruda: what a worker asks of the kernel and Python has no name for; and the processor's own SHA-256.
 *
 * A static worker has no dlopen, so no ctypes. Each function but one is one system call; a failure raises OSError as the
 * functions of os do, with the path where there is one. biruda/worker/kernel.py is the typed face of it. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sha256.h"

#ifndef BIRUDA_ARCH
#error "BIRUDA_ARCH: the canonical name of the architecture this is compiled for"
#endif

enum { MAX_ENTROPY_BYTES = 1024 };

/* A path, text or None. What comes back is a new reference, NULL with an exception set. */
static PyObject *bytes_or_none(PyObject *given)
{
    PyObject *bytes = NULL;

    if (given == Py_None)
        return Py_NewRef(Py_None);
    return PyUnicode_FSConverter(given, &bytes) ? bytes : NULL;
}

static const char *chars(PyObject *bytes_or_None)
{
    return bytes_or_None == Py_None ? NULL : PyBytes_AS_STRING(bytes_or_None);
}

static PyObject *result(long status, PyObject *path)
{
    if (status == 0)
        Py_RETURN_NONE;
    return path ? PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path) : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *biruda_mount(PyObject *module, PyObject *arguments)
{
    PyObject *given[4]; /* source, target, fstype, data */
    PyObject *bytes[4] = {NULL};
    PyObject *answer = NULL;
    unsigned long flags = 0;
    int status, i;

    given[3] = Py_None;
    if (!PyArg_ParseTuple(arguments, "OOO|kO:mount", &given[0], &given[1], &given[2], &flags, &given[3]))
        return NULL;
    for (i = 0; i < 4; i++)
        if ((bytes[i] = bytes_or_none(given[i])) == NULL)
            goto end;
    Py_BEGIN_ALLOW_THREADS
    status = mount(chars(bytes[0]), chars(bytes[1]), chars(bytes[2]), flags, chars(bytes[3]));
    Py_END_ALLOW_THREADS
    answer = result(status, given[1]);
end:
    for (i = 0; i < 4; i++)
        Py_XDECREF(bytes[i]);
    return answer;
}

static PyObject *biruda_umount2(PyObject *module, PyObject *arguments)
{
    PyObject *target = NULL, *answer;
    int flags = 0, status;

    if (!PyArg_ParseTuple(arguments, "O&|i:umount2", PyUnicode_FSConverter, &target, &flags))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = umount2(PyBytes_AS_STRING(target), flags);
    Py_END_ALLOW_THREADS
    answer = result(status, target);
    Py_DECREF(target);
    return answer;
}

static PyObject *biruda_pivot_root(PyObject *module, PyObject *arguments)
{
    PyObject *new_root = NULL, *put_old = NULL, *answer;
    long status;

    if (!PyArg_ParseTuple(arguments, "O&O&:pivot_root", PyUnicode_FSConverter, &new_root, PyUnicode_FSConverter, &put_old)) {
        Py_XDECREF(new_root); /* converted before the second was refused */
        return NULL;
    }
    status = syscall(SYS_pivot_root, PyBytes_AS_STRING(new_root), PyBytes_AS_STRING(put_old));
    answer = result(status, new_root);
    Py_DECREF(new_root);
    Py_DECREF(put_old);
    return answer;
}

static PyObject *biruda_finit_module(PyObject *module, PyObject *arguments)
{
    const char *parameters = "";
    int fd, flags = 0;
    long status;

    if (!PyArg_ParseTuple(arguments, "i|si:finit_module", &fd, &parameters, &flags))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = syscall(SYS_finit_module, fd, parameters, flags);
    Py_END_ALLOW_THREADS
    return result(status, NULL);
}

static PyObject *biruda_reboot(PyObject *module, PyObject *arguments)
{
    unsigned int command;
    int status;

    if (!PyArg_ParseTuple(arguments, "I:reboot", &command))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = reboot((int)command);
    Py_END_ALLOW_THREADS
    return result(status, NULL);
}

static PyObject *biruda_prctl(PyObject *module, PyObject *arguments)
{
    int option, status;
    unsigned long argument = 0, third = 0, fourth = 0, fifth = 0;

    if (!PyArg_ParseTuple(arguments, "i|kkkk:prctl", &option, &argument, &third, &fourth, &fifth))
        return NULL;
    status = prctl(option, argument, third, fourth, fifth);
    return status < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(status);
}

static PyObject *biruda_personality(PyObject *module, PyObject *arguments)
{
    unsigned long wanted;
    int before;

    if (!PyArg_ParseTuple(arguments, "k:personality", &wanted))
        return NULL;
    before = personality(wanted);
    return before < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(before);
}

static PyObject *biruda_sethostname(PyObject *module, PyObject *arguments)
{
    const char *name;
    Py_ssize_t length;

    if (!PyArg_ParseTuple(arguments, "s#:sethostname", &name, &length))
        return NULL;
    return result(sethostname(name, (size_t)length), NULL);
}

static PyObject *biruda_unshare(PyObject *module, PyObject *arguments)
{
    int flags, status;

    if (!PyArg_ParseTuple(arguments, "i:unshare", &flags))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = unshare(flags);
    Py_END_ALLOW_THREADS
    return result(status, NULL);
}

static PyObject *biruda_set_time(PyObject *module, PyObject *arguments)
{
    long long seconds;
    long nanoseconds = 0;
    struct timespec time;

    if (!PyArg_ParseTuple(arguments, "L|l:set_time", &seconds, &nanoseconds))
        return NULL;
    time = (struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = nanoseconds};
    return result(clock_settime(CLOCK_REALTIME, &time), NULL);
}

static PyObject *biruda_add_entropy(PyObject *module, PyObject *arguments)
{
    struct {
        int bits, bytes;
        unsigned char data[MAX_ENTROPY_BYTES];
    } pool; /* struct rand_pool_info, with room */
    const char *data;
    Py_ssize_t length;
    int fd, status, why;

    if (!PyArg_ParseTuple(arguments, "y#:add_entropy", &data, &length))
        return NULL;
    if (length < 1 || length > MAX_ENTROPY_BYTES)
        return PyErr_Format(PyExc_ValueError, "add_entropy: %zd bytes, it takes 1 to %d", length, MAX_ENTROPY_BYTES);
    if ((fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC)) < 0)
        return PyErr_SetFromErrnoWithFilename(PyExc_OSError, "/dev/urandom");
    pool.bits = (int)length * 8;
    pool.bytes = (int)length;
    memcpy(pool.data, data, (size_t)length);
    status = ioctl(fd, RNDADDENTROPY, &pool);
    why = errno;
    explicit_bzero(&pool, sizeof pool);
    if (status == 0)
        ioctl(fd, RNDRESEEDCRNG); /* now, not within a minute: a clone must not go on as its template would have */
    close(fd);
    errno = why;
    return result(status, NULL);
}

/* The state is 32 bytes, the data a number of whole blocks. */
static PyObject *biruda_sha256_blocks(PyObject *module, PyObject *arguments)
{
    Py_buffer state, data;
    uint32_t words[8];
    int fits;

    if (!PyArg_ParseTuple(arguments, "w*y*:sha256_blocks", &state, &data))
        return NULL;
    if ((fits = sha256_is_here() && state.len == sizeof words && data.len % 64 == 0)) {
        memcpy(words, state.buf, sizeof words);
        sha256_blocks(words, data.buf, (size_t)data.len / 64);
        memcpy(state.buf, words, sizeof words);
    }
    PyBuffer_Release(&state);
    PyBuffer_Release(&data);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "sha256_blocks: a state of 32 bytes and whole blocks, where has_sha256");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"mount", biruda_mount, METH_VARARGS, NULL},
    {"umount2", biruda_umount2, METH_VARARGS, NULL},
    {"pivot_root", biruda_pivot_root, METH_VARARGS, NULL},
    {"finit_module", biruda_finit_module, METH_VARARGS, NULL},
    {"reboot", biruda_reboot, METH_VARARGS, NULL},
    {"prctl", biruda_prctl, METH_VARARGS, NULL},
    {"personality", biruda_personality, METH_VARARGS, NULL},
    {"sethostname", biruda_sethostname, METH_VARARGS, NULL},
    {"unshare", biruda_unshare, METH_VARARGS, NULL},
    {"set_time", biruda_set_time, METH_VARARGS, NULL},
    {"add_entropy", biruda_add_entropy, METH_VARARGS, NULL},
    {"sha256_blocks", biruda_sha256_blocks, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int add_constants(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "has_sha256", sha256_is_here()) != 0)
        return -1;
    return PyModule_AddStringConstant(module, "arch", BIRUDA_ARCH);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_constants},
    {0, NULL},
};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_biruda", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__biruda(void)
{
    return PyModuleDef_Init(&definition);
}
