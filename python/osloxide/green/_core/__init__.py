"""What the names of eventlet stand on: greenlets on native threads, their turns, and the clock.

Private: services import the modules beside this package, under eventlet's names.
"""
