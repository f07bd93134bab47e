"""Pictures, one and very many: how they are read, and a network over a folder of them on Apache Beam."""
