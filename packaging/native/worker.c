/* The static worker: CPython, with every module it can ever import frozen into this file.
 *
 * Nothing is looked for on disk: there is no search path, no site, no home of Python. The environment's variables for
 * Python are not heeded, for they belong to what is built. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern const struct _frozen biruda_frozen[];
PyMODINIT_FUNC PyInit__biruda(void);

/* Memory for objects, mapped at once: by page faults, one for each 4 KiB, a start would take a tenth longer. */
static void *map_arena(void *context, size_t bytes)
{
    void *arena = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    return arena == MAP_FAILED ? NULL : arena;
}

static void unmap_arena(void *context, void *arena, size_t bytes)
{
    munmap(arena, bytes);
}

static void fail(PyStatus status)
{
    if (PyStatus_IsExit(status))
        exit(status.exitcode);
    fprintf(stderr, "biruda: the worker's interpreter does not start: %s\n", status.err_msg ? status.err_msg : "?");
    exit(125);
}

static void check(PyStatus status)
{
    if (PyStatus_Exception(status))
        fail(status);
}

static void start(int argc, char **argv)
{
    PyPreConfig before;
    PyConfig config;

    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    check(Py_PreInitialize(&before));

    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.pathconfig_warnings = 0;
    config.optimization_level = 2;
    config.install_signal_handlers = 1; /* as python3 has it: SIGINT, and SIGPIPE becomes an exception */
    config.parse_argv = 0;
    config.module_search_paths_set = 1;
    check(PyConfig_SetBytesArgv(&config, argc, argv));
    check(PyConfig_SetBytesString(&config, &config.program_name, argc ? argv[0] : "biruda"));
    /* Said beforehand, they are not looked for. */
    check(PyConfig_SetString(&config, &config.executable, L""));
    check(PyConfig_SetString(&config, &config.base_executable, L""));
    check(PyConfig_SetString(&config, &config.home, L"/"));
    check(PyConfig_SetString(&config, &config.prefix, L""));
    check(PyConfig_SetString(&config, &config.base_prefix, L""));
    check(PyConfig_SetString(&config, &config.exec_prefix, L""));
    check(PyConfig_SetString(&config, &config.base_exec_prefix, L""));
    check(PyConfig_SetString(&config, &config.platlibdir, L"lib"));
    check(PyConfig_SetString(&config, &config.stdlib_dir, L""));
    check(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
}

/* The status that main() of the frozen biruda_worker returns; SystemExit ends the process as in any program. */
static int run(void)
{
    PyObject *module = PyImport_ImportModule("biruda_worker");
    PyObject *answer = module ? PyObject_CallMethod(module, "main", NULL) : NULL;
    long status = answer ? PyLong_AsLong(answer) : -1;

    if (PyErr_Occurred()) {
        PyErr_Print();
        status = 125;
    }
    Py_XDECREF(answer);
    Py_XDECREF(module);
    return (int)status;
}

/* Whether what was printed is written. Nothing else is left to do: taking the interpreter apart, object by object, would
 * take as long as its start did. */
static int flush(const char *name)
{
    PyObject *stream = PySys_GetObject(name);
    PyObject *answer = stream && stream != Py_None ? PyObject_CallMethod(stream, "flush", NULL) : Py_NewRef(Py_None);
    int done = answer != NULL;

    PyErr_Clear();
    Py_XDECREF(answer);
    return done;
}

int main(int argc, char **argv)
{
    PyObjectArenaAllocator arenas = {NULL, map_arena, unmap_arena};
    int status;

    PyObject_SetArenaAllocator(&arenas);
    if (PyImport_AppendInittab("_biruda", PyInit__biruda) != 0)
        return 125;
    PyImport_FrozenModules = biruda_frozen;
    start(argc, argv);
    status = run();
    if (!flush("stdout") && status == 0)
        status = 125;
    flush("stderr");
    _exit(status);
}
