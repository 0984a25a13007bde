"""A Redis-protocol store with no set-up: one Valkey for all of a user's processes.

`client` is what a process holds while it needs the store, `server` the Valkey itself, and
`supervisor` the process between them, which ends the server after its last client.

All that is known about who is alive is a lock on a file, which the kernel drops with its holder:

- `clients.lock` is shared by every client. Who gets it alone knows that there is none.
- `start.lock` is held by a client while it arrives, and by the supervisor while it ends the
  server: no client can slip in between "nobody is left" and "the server is gone".
- `supervisor.lock` is held by the supervisor.
- `server.lock` is handed on to the Valkey process, and held by it alone. It tells of a server
  whose supervisor was killed, and keeps a second one from writing to the same files.
"""
