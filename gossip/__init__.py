"""The peer-to-peer layer: knows named arrays, peers and time; knows no model and no Spark.

The peer is a pure state machine (`gossip.lanes.peer`). Two drivers run it: `gossip.zmq.runtime` over real sockets and
`gossip.sim.simulator` on virtual time.
"""
