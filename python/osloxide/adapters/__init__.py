"""What osloxide changes in projects and libraries beside oslo.service and oslo.messaging.

One module for each project. :mod:`osloxide.activation.import_hook` calls it right after a module of
the project was imported; a program that does not import the project never loads it. An adapter
recognises the releases it is for by the names that it is going to replace, and leaves all others
alone.
"""
