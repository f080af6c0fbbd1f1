"""A Flask site with SQLAlchemy and a database of sqlite."""

import os

from flask import Flask, jsonify, request
from sqlalchemy import String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

engine = create_engine(f"sqlite:///{os.environ['NOTES']}/db/notes.sqlite3")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(200))


Base.metadata.create_all(engine)
app = Flask(__name__)


@app.post("/")
def add():
    with Session(engine) as session:
        session.add(Note(text=request.get_data(as_text=True)))
        session.commit()
        return jsonify(session.scalar(select(func.count()).select_from(Note)))


@app.get("/peek")
def peek():
    """Try to read a file of a neighbour's."""
    try:
        with open(request.args["path"], "rb") as file:
            return jsonify(len(file.read()))
    except OSError as exc:
        return jsonify(exc.strerror)
