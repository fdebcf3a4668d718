"""The peer-to-peer layer: knows named arrays, peers and time; knows no model and no Spark.

The peer is a pure state machine (`gossip.peer`). Two drivers run it: `gossip.zmq_runtime` over real sockets and
`gossip.simulator` on virtual time.
"""
