"""The contracts themselves: Solidity sources, committed ABIs, known deployments and the command that compiles
them. Guarantees nothing at run time: a node only reads the artifacts, through `settlement.chain`.
"""
