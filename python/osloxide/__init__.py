"""osloxide: a native core for OpenStack services.

Importing the package does no work and touches neither the native extension nor oslo.service.
"""
