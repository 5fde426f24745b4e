"""The bundled set, its server, and the main job run on it."""

from mmdata.demo.run import run_demo, serve_forever
from mmdata.demo.server import DemoServer, serving

__all__ = ["DemoServer", "run_demo", "serve_forever", "serving"]
