/* What a small C accelerator would bring: the reading of an ordinary head, in one call. A sketch to be measured, not to be used.

   It takes what the fast path takes most often (origin-form, no percent sign, no field that says more than a value) and leaves the rest to
   Python by returning None. Multi-phase, and able to live in interpreters with a GIL each. `python -m bench.accelerator` builds and times it.
*/
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

static int
set(PyObject *environ, const char *key, Py_ssize_t key_length, const char *value, Py_ssize_t length)
{
    PyObject *name = PyUnicode_DecodeLatin1(key, key_length, NULL), *text = PyUnicode_DecodeLatin1(value, length, NULL);
    int failed = name == NULL || text == NULL || PyDict_SetItem(environ, name, text) < 0;
    Py_XDECREF(name);
    Py_XDECREF(text);
    return failed ? -1 : 0;
}

static int
field(PyObject *environ, const char *line, const char *end)
{
    char key[64] = "HTTP_";
    const char *colon = memchr(line, ':', end - line);
    if (colon == NULL || colon == line || colon - line > 50) {
        return 1;
    }
    Py_ssize_t length = 5;
    for (const char *at = line; at < colon; at++) {
        char c = *at;
        if (c >= 'a' && c <= 'z') c -= 32;
        else if (c == '-') c = '_';
        else if (!(c >= 'A' && c <= 'Z')) return 1;
        key[length++] = c;
    }
    do colon++; while (colon < end && (*colon == ' ' || *colon == '\t'));
    while (end > colon && (end[-1] == ' ' || end[-1] == '\t')) end--;
    for (const char *at = colon; at < end; at++) {
        if (((unsigned char)*at < 32 && *at != '\t') || *at == 127) return 1;
    }
    return set(environ, key, length, colon, end - colon);
}

/* read(data, base, prefix_length) -> (length of the head, environ) or None */
static PyObject *
read_head(PyObject *self, PyObject *args)
{
    const char *data;
    Py_ssize_t size, prefix;
    PyObject *base;
    if (!PyArg_ParseTuple(args, "y#O!n", &data, &size, &PyDict_Type, &base, &prefix)) {
        return NULL;
    }
    const char *stop = data + size, *space = memchr(data, ' ', size);
    const char *target = space + 1, *after = space ? memchr(target, ' ', stop - target) : NULL;
    if (after == NULL || stop - after < 11 || memcmp(after, " HTTP/1.", 8) || memcmp(after + 9, "\r\n", 2) || *target != '/') {
        Py_RETURN_NONE;
    }
    const char *query = memchr(target, '?', after - target), *path_end = query ? query : after;
    if (memchr(target, '%', path_end - target) != NULL || path_end - target < prefix) {
        Py_RETURN_NONE;
    }
    PyObject *environ = PyDict_Copy(base);
    if (environ == NULL) {
        return NULL;
    }
    int outcome = set(environ, "REQUEST_METHOD", 14, data, space - data)
        | set(environ, "RAW_URI", 7, target, after - target)
        | set(environ, "PATH_INFO", 9, target + prefix, path_end - target - prefix)
        | set(environ, "QUERY_STRING", 12, query ? query + 1 : after, query ? after - query - 1 : 0)
        | set(environ, "SERVER_PROTOCOL", 15, after + 1, 8);
    const char *line = after + 11;
    while (outcome == 0) {
        const char *end = memchr(line, '\r', stop - line);
        if (end == NULL || end + 1 >= stop || end[1] != '\n') {
            outcome = 1;
        } else if (end == line) {
            return Py_BuildValue("nN", line + 2 - data, environ);
        } else {
            outcome = field(environ, line, end);
            line = end + 2;
        }
    }
    Py_DECREF(environ);
    if (outcome < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"read", read_head, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "sketch", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC
PyInit_sketch(void)
{
    return PyModuleDef_Init(&module);
}
