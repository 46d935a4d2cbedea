/* The python that freezes modules: it has one C module more than a worker, without which no \N{...} can be compiled. */
#include <Python.h>

PyMODINIT_FUNC PyInit_unicodedata(void);

int main(int argc, char **argv)
{
    if (PyImport_AppendInittab("unicodedata", PyInit_unicodedata) != 0)
        return 125;
    return Py_BytesMain(argc, argv);
}
