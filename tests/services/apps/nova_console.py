"""Enters a server with a console into nova's database, and prints the token that opens the console.

Arguments: nova.conf, the address and the port of the console. Run with nova's interpreter; a cloud
does the same when a server is built and a user asks for its console.
"""

import sys
import uuid

from nova import config, context, objects
from nova.db.main import api as database


def main() -> None:
    configuration, host, port = sys.argv[1:]
    config.parse_args(["nova-console", "--config-file", configuration], configure_db=True)
    objects.register_all()
    admin = context.get_admin_context()
    server = str(uuid.uuid4())
    database.instance_create(
        admin,
        {
            "uuid": server,
            "host": "osloxide-test",
            "node": "osloxide-test",
            "project_id": "p1",
            "user_id": "admin",
            "vm_state": "active",
            "display_name": "a server",
        },
    )
    token = objects.ConsoleAuthToken(
        context=admin,
        console_type="novnc",
        host=host,
        port=int(port),
        instance_uuid=server,
        access_url_base="http://127.0.0.1/vnc_auto.html",
    )
    print(token.authorize(3600))


if __name__ == "__main__":
    main()
