"""A warehouse: an MCP server over stdio, for test_agents.py."""

from typing import Literal

from mcp.server.mcpserver import MCPServer

STOCK = {"apples": 17, "pears": 4, "plums": 52}
server = MCPServer("warehouse")


@server.tool()
def get_stock(fruit: Literal["apples", "pears", "plums"]) -> str:
    """Get how many crates of a fruit are in the warehouse."""
    return f"{STOCK[fruit]} crates of {fruit}"


@server.tool()
def get_opening_hours(day: str) -> str:
    """Get the hours at which the warehouse is open on a day of the week."""
    return f"On {day} from 8 to 16 o'clock"


if __name__ == "__main__":
    server.run("stdio")
