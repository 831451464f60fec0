"""How evaluation sets lie on a disk: one module a layout, each from a folder to what was `Found` there."""
